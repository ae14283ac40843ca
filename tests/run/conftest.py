from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from night_runs import write_recipe

from flagrelease.cli import main
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint


@pytest.fixture(scope="session")
def _proved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    write_checkpoint(folder / "source", tiny_config())
    assert main(["run", str(write_recipe(folder)), "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture
def night(_proved_once: Path, tmp_path: Path) -> Path:
    """A folder with `recipe.yaml` and its `out`, in which three chips are validated. A copy, times of files kept."""
    shutil.copytree(_proved_once, tmp_path / "night")
    return tmp_path / "night"
