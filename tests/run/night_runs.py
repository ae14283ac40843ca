"""What tests of `flagrelease run` share: a recipe whose stages read files only, and a run of it as a value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagrelease.cli import main
from flagrelease.records.night import Night, read_night

SOURCE = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"
Releases = dict[str, Any]
THREE: Releases = {
    "ascend": {"format": "bf16", "layout": "hf"},
    "mthreads": {"format": "fp8", "layout": "hf"},
    "nvidia": {"format": "fp8", "layout": "hf"},
}


def write_recipe(folder: Path, releases: Releases = THREE, **more: Any) -> Path:
    """Of the checkpoint in the folder, if there is one: a few random tensors; else of the trained model."""
    source = folder / "source" if (folder / "source").is_dir() else SOURCE
    document = {
        "schema_version": 1,
        "model": "small-v4",
        "source": {"repo": "someone/small-v4", "revision": "r1", "license": "MIT", "path": str(source)},
        "releases": releases,
        "validation": {"stages": ["integrity", "weights"]},
    } | more
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Ran:
    """How a run ended. `why` and `status`: "CHIP STAGE" -> what the step says."""

    code: int
    document: dict[str, Any]
    night: Night
    talk: str

    @property
    def why(self) -> dict[str, str]:
        steps = ((chip["chip"], *step) for chip in self.document["chips"] for step in chip["steps"].items())
        return {f"{chip} {name}": step["why"] for chip, name, step in steps if step["why"]}

    @property
    def status(self) -> dict[str, str]:
        steps = ((chip["chip"], *step) for chip in self.document["chips"] for step in chip["steps"].items())
        return {f"{chip} {name}": step["status"] for chip, name, step in steps}

    def detail(self, chip: str, stage: str) -> str:
        (found,) = [one for one in self.document["chips"] if one["chip"] == chip]
        return str(found["steps"][stage]["detail"])


def run(capsys: pytest.CaptureFixture[str], recipe: Path, out: Path, *words: str | Path) -> Ran:
    capsys.readouterr()
    code = main(["run", str(recipe), "--out", str(out), "--json", *map(str, words)])
    shown, talk = capsys.readouterr()
    document = json.loads(shown)
    return Ran(code, document, read_night(Path(document["night"])), talk)
