"""The list of the pre-flight and the matrix of invariance, in words and in a real browser: nothing is cut."""

from __future__ import annotations

from pathlib import Path

import made_up
import pytest
from browser import Browser
from test_page_in_browser import LAYOUT, OPEN_ALL

from flagrelease.records.report import Report, Stage
from flagrelease.validate.invariance.figures import (
    CircumstanceFigures,
    InvarianceFigures,
    Kind,
    LengthFigures,
    PartedText,
)
from flagrelease.validate.page.page import render_page
from flagrelease.validate.preflight.check import CheckId, CheckVerdict, PreflightFigures, judged

FOUND: list[tuple[CheckId, CheckVerdict, str]] = [
    ("identity", "pass", "'deepseek-v4-flash-0731-fp8'"),
    ("prompt-tokens", "fail", "one turn, max: 19 for 370; a tool's result, max: 240 for 591"),
    ("quoted-markup", "noted", "special tokens: whoever reaches a chat can close its reasoning or open another turn"),
    ("reasoning-apart", "fail", "</think> in an answer"),
    ("own-call", "not-shown", "an answer without a call"),
    ("seeds", "fail", "one answer to all seeds: they, or the temperature, are not read"),
]


def preflight() -> Stage:
    checks = [judged(id_, "what was asked", "what was expected", came, verdict) for id_, verdict, came in FOUND]
    checks[-1] = checks[-1].model_copy(update={"accepted": "SGLang reads no seeds without deterministic inference"})
    figures = PreflightFigures(server="deepseek at http://10.0.0.7:8000/v1", checks=tuple(checks), requests=57,
                               prompt_tokens=21345, tokens=3210)  # fmt: skip
    return Stage(name="preflight", verdict="fail", detail="d", figures=figures.model_dump(mode="json"))


def row(name: str, kind: Kind = "circumstance", clear: int = 0, largest: float | None = 2e-6) -> CircumstanceFigures:
    parted = PartedText(prompt="register-8180-2", at=11, margin=3.25, parting="clear margin")
    lengths = kind == "lengths"
    return CircumstanceFigures(
        name=name, against="alone", kind=kind, texts=0 if lengths else 20, same=0 if lengths else 20 - clear, ties=0,
        clear=clear, unknown=0, tokens=0 if lengths else 640, mean_difference=None if largest is None else largest / 3,
        largest_difference=largest, right=0 if name == "variant graphs off" else 14, asked=14, cached=1024,
        parted=(parted,) * clear, verdict="fail" if clear else "pass", why="a reason in one sentence",
    )  # fmt: skip


def invariance() -> Stage:
    rows = (
        row("sent again", "floor"), row("after the whole prompt"), row("after a shared beginning"),
        row("streamed", largest=None), row("16 at once", clear=2, largest=0.31),
        row("variant graphs off", "variant", clear=3, largest=1.4), row("lengths", "lengths", largest=None),
    )  # fmt: skip
    figures = InvarianceFigures(
        server="deepseek at http://10.0.0.7:8000/v1", variants={"graphs off": "deepseek at http://10.0.0.7:8001/v1"},
        requests=140, prompt_tokens=512000, tokens=9000, mean_limit=0.05, largest_limit=1.0, same_limit=0.75, tie=0.5,
        circumstances=rows, lengths=(LengthFigures(tokens=1024, right=2, asked=2),),
    )  # fmt: skip
    return Stage(name="invariance", verdict="fail", detail="d", figures=figures.model_dump(mode="json"))


def report() -> Report:
    whole = made_up.failing()
    changed = {"preflight": preflight(), "invariance": invariance()}
    kept = tuple(stage for stage in whole.stages if stage.name not in changed)
    return whole.model_copy(
        update={"stages": (*kept[:2], changed["preflight"], kept[2], changed["invariance"], *kept[3:])}
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "report.html"
    path.write_text(render_page(report(), made_up.manifest()), encoding="utf-8")
    return path


def test_every_check_is_listed_with_the_line_to_change(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count('<li class="t-') >= len(FOUND)
    assert "--reasoning-parser deepseek_v4" in text
    assert "Noted: special tokens" in text
    assert "Not shown: an answer without a call" in text
    assert "Accepted: SGLang reads no seeds" in text
    assert "1 of 6 checks" in text


def test_the_matrix_has_a_row_for_each_circumstance(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "5 of 7 circumstances hold, in 140 requests" in text
    for name in ("after a shared beginning", "variant graphs off", "found in a register", "register-8180-2"):
        assert name in text
    assert "5 of 7 circumstances" in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_is_cut_and_nothing_lies_over_another(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.show(page, width, scheme)
    browser.ask(OPEN_ALL)
    found = browser.ask(LAYOUT)
    assert found["seen"] > 100
    assert (found["cut"], found["over"], found["scrolled"]) == ([], [], [])
