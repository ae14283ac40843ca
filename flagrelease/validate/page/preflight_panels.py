"""The section of the pre-flight: every check, and the line to change where one failed."""

from __future__ import annotations

from flagrelease.page.panel import CheckItem, Panel, Table
from flagrelease.records.report import Stage
from flagrelease.validate.preflight.check import CheckVerdict, PreflightCheck, PreflightFigures

_SHOWN = {"pass": "pass", "fail": "fail", "not-shown": "cannot-tell", "noted": "not-informative"}
_SAID: dict[CheckVerdict, str] = {"pass": "", "fail": "", "not-shown": "Not shown: ", "noted": "Noted: "}


def preflight_panels(stage: Stage) -> list[Panel]:
    """The list, then what was asked and expected as a table."""
    if not stage.figures:
        return []
    figures = PreflightFigures.model_validate(stage.figures)
    passed = sum(check.verdict == "pass" for check in figures.checks)
    words = (
        f"{figures.server} passed {passed} of {len(figures.checks)} checks in {figures.requests} requests: "
        f"{figures.prompt_tokens:,} tokens of prompts, {figures.tokens:,} of answers."
    )
    table = Table(("check", "asked", "expected", "came"))
    table.rows.extend((check.id, check.asked, check.expected, check.came) for check in figures.checks)
    return [Panel("Pre-flight", words, table=table, checks=tuple(map(_item, figures.checks)))]


def _item(check: PreflightCheck) -> CheckItem:
    verdict = "not-informative" if check.accepted is not None else _SHOWN[check.verdict]
    detail = _SAID[check.verdict] + check.came
    if check.verdict == "fail":
        detail += f"; expected: {check.expected}"
    if check.accepted is not None:
        detail += f". Accepted: {check.accepted}"
    return CheckItem(
        check.id.replace("-", " "), verdict, detail, "; ".join(f"{s}: {f}" for s, f in check.fixes.items())
    )
