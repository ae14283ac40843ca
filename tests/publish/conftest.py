from __future__ import annotations

import json
from pathlib import Path

import pytest
from publish_release import RECIPES, Converted, write_release, write_report

from flagrelease.cli import main
from flagrelease.model.v4.synthetic import write_checkpoint


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "fp8-mp8")


@pytest.fixture
def report(release: Path, tmp_path: Path) -> Path:
    return write_report(release, tmp_path / "report.json")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("converted")
    model = RECIPES.parent / "examples" / "tiny" / "flagrelease-tiny-v4"  # the recipe takes no other dimensions
    write_checkpoint(folder / "source", json.loads((model / "config.json").read_text(encoding="utf-8")))
    (folder / "source" / "README.md").write_text("# the source's card\n")
    words = ["convert", str(RECIPES / "tiny.yaml"), "--checkpoint", str(folder / "source"), "--chip", "nvidia"]
    assert main([*words, "--out", str(folder / "releases")]) == 0
    return Converted(folder / "source", folder / "releases" / "fp8-mp8", "nvidia")
