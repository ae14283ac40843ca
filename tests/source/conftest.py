"""The checkpoint that the tests of this folder put on a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "checkpoint"
    write_checkpoint(folder, tiny_config())
    (folder / "LICENSE").write_text("MIT\n")
    return folder
