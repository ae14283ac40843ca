from __future__ import annotations

from pathlib import Path

import pytest

from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    write_checkpoint(folder, tiny_config())
    (folder / "encoding").mkdir()
    (folder / "encoding" / "encoding_dsv4.py").write_text("# the prompt format\n")
    (folder / "LICENSE").write_text("MIT\n")
    return folder
