"""Every planted defect fails exactly the checks it should, and a finding names what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from plain_releases import Maker
from planted import DEFECTS, Defect

from flagrelease.verify.verify import verify_release


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_planted_defect_is_caught(defect: Defect, maker: Maker, tmp_path: Path) -> None:
    made = maker.of(defect.release)
    if defect.step != "after":
        made = replace(made, **{f"spoil_{defect.step}": defect.plant})
    release = made.write(tmp_path / "release")
    if defect.step == "after":
        defect.plant(release)
    report = verify_release(release, maker.source)
    assert [check.name for check in report.checks if check.status == "fail"] == defect.fails.split()
    assert not report.passed
    check, text = defect.says.split(": ", 1)
    lines = [str(finding) for finding in report.check(check).findings]
    assert any(text in line for line in lines), lines


def test_every_check_has_a_defect_that_only_it_catches() -> None:
    alone = {defect.fails for defect in DEFECTS if " " not in defect.fails}
    assert alone == {"files", "config", "structure", "replicas", "tensors", "source", "companions"}


def test_docs_list_every_defect_with_its_checks() -> None:
    text = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    for defect in DEFECTS:
        checks = ", ".join(f"`{name}`" for name in defect.fails.split())
        assert f"| {defect.name} | {checks} |" in text, defect.name
    rows = text.split("## Planted defects", 1)[1].count("\n| ") - 1
    assert rows == len(DEFECTS)
