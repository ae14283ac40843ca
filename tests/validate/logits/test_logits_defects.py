"""Planted defects: which stage catches each, as docs/validation-defects.md says, and none passes all of them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from defective_ports import DEFECTS, LAYER, RULES, Defect, ported
from logits_study import Study

from flagrelease import engine
from flagrelease.records.report import Stage
from flagrelease.validate.logits.stage import run_logits
from flagrelease.verify.verify import verify_release

PAGE = Path(__file__).parents[3] / "docs" / "validation-defects.md"
COLUMNS = ("digests", "weights", "oracle", "native", "layers")


@dataclass(frozen=True)
class Caught:
    """What each part of the validation said of a port; a cell of the page begins with its verdict."""

    digests: list[str]  # failed checks of verify without the source
    weights: list[str]  # and with it
    stage: Stage

    def by(self, column: str) -> bool:
        if column in ("digests", "weights"):
            return bool(getattr(self, column))
        return any(name.startswith(f"{column}/" if column != "layers" else "layers") for name in self.broken)

    @property
    def broken(self) -> list[str]:
        return list(self.stage.figures["broken"])

    def cell(self, column: str) -> str:
        """As on the page, with the number that was measured."""
        verdict = "caught" if self.by(column) else "no"
        if column in ("digests", "weights"):
            return f"caught: `{', '.join(getattr(self, column))}`" if self.by(column) else "no"
        if column == "layers":
            step = self.stage.figures["layers"]["step"]
            return f"{verdict}: layer {step['layer']}, {step['half']}" if step else verdict
        found = {c["replay"]: c["mean_kl"] for c in self.stage.figures["comparisons"] if c["reference"] == column}
        return f"{verdict} ({found['prefill']:.1e}, {found['decode']:.1e})"


def examine(study: Study, defect: Defect | None, folder: Path) -> Caught:
    release, model, spoil = study.release, study.model, None
    if defect is not None and defect.release is not None:
        release = shutil.copytree(study.release, folder / "release")
        defect.release(release)
        model = engine.load(release, "bf16")
    if defect is not None:
        spoil = defect.engine
    stage = run_logits(ported(model, spoil), release, study.baseline, RULES, folder / "work", layers=True)
    alone, beside = (
        [check.name for check in verify_release(release, source).checks if check.status == "fail"]
        for source in (None, study.source)
    )
    return Caught(alone, beside, stage)


def rows() -> dict[str, list[str]]:
    lines = [line.strip("| \n").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    return {name: cells for name, *cells in lines if len(cells) == len(COLUMNS)}


EACH = [  # the page's last rows are looked at by the slow tests
    pytest.param(defect, id=defect.name, marks=[pytest.mark.slow] if number > 2 else [])
    for number, defect in enumerate(DEFECTS)
]


@pytest.mark.parametrize("defect", [pytest.param(None, id="none"), *EACH])
def test_the_page_says_what_catches_a_defect(defect: Defect | None, study: Study, tmp_path: Path) -> None:
    caught = examine(study, defect, tmp_path)
    name = "none: sums in another order" if defect is None else defect.name
    measured = [caught.cell(column) for column in COLUMNS]
    print(f"| {name} | {' | '.join(measured)} |")
    written = rows()[name]
    for column, ours, theirs in zip(COLUMNS, measured, written, strict=True):
        # numbers in brackets are of one machine
        assert re.sub(r" \(.*\)", "", ours) == re.sub(r" \(.*\)", "", theirs), column
    assert (caught.stage.verdict == "pass" and not caught.weights) == (defect is None), caught.stage.detail


def test_the_page_has_a_row_for_every_defect_and_none_passes() -> None:
    made = {name: cells for name, cells in rows().items() if not set("".join(cells)) <= set("-")}
    names = [defect.name for defect in DEFECTS]
    assert [name for name in made if name in names] == names
    for name in names:
        assert any(cell.startswith("caught") for cell in made[name]), name
    alone = {column for name in names for column, cell in zip(COLUMNS, made[name], strict=True) if cell != "no"}
    assert {"weights", "oracle", "layers"} <= alone
    assert any(cells[3] == "no" or cells[3].startswith("no ") for cells in (made[n] for n in names))
    assert LAYER == 2
