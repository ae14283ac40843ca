"""What a chip's cell of the matrix can say, in words and signs: no meaning is in a colour alone."""

from __future__ import annotations

from typing import Literal

from flagrelease.page.signs import SIGNS as REPORT_SIGNS
from flagrelease.validate.page.page import WORDS as REPORT_WORDS

State = Literal[
    "pass", "fail", "cannot-tell", "not-informative", "not-run", "stale", "unreadable", "not-converted", "not-meant"
]
WORDS: dict[str, str] = {
    **REPORT_WORDS,
    "stale": "Stale",
    "unreadable": "Unreadable",
    "not-converted": "Not converted",
    "not-meant": "Not for this chip",
    # of a night and its steps
    "done": "Done",
    "planned": "Planned",
    "failed": "Failed",
    "stopped": "Stopped",
    "running": "No end recorded",
    "nothing-to-do": "Nothing to do",
    "kept": "Kept",
    "absent": "No",
}
SIGNS: dict[str, str] = {
    **REPORT_SIGNS,
    "done": "✓", "kept": "✓", "nothing-to-do": "✓", "failed": "✗", "unreadable": "✗", "not-converted": "✗",
    "planned": "○", "not-meant": "·", "absent": "–", "stale": "↻", "running": "…", "stopped": "■",
}  # fmt: skip
_TONES: dict[str, str] = {
    **{verdict: verdict for verdict in REPORT_SIGNS},
    "done": "pass", "kept": "pass", "nothing-to-do": "pass", "failed": "fail", "unreadable": "fail",
    "not-converted": "fail", "stale": "cannot-tell", "stopped": "cannot-tell", "running": "cannot-tell",
}  # fmt: skip
MEANINGS: dict[State, str] = {
    "pass": "every stage that the rules ask for passed, on this release as it is",
    "fail": "a stage failed",
    "cannot-tell": "the report has no verdict: a stage did not run, or its interval is too wide",
    "not-informative": "the stages that lack a verdict could not have failed a broken port",
    "not-run": "there is no report",
    "stale": "the report is of another manifest: the release was made again since",
    "unreadable": "report.json cannot be read",
    "not-converted": "the last night has this release, the folder has not",
    "not-meant": "neither the recipe nor a report names this chip",
}


def tone(state: str) -> str:
    """The verdict whose colours a state has; those without a meaning of their own look like `not-run`."""
    return _TONES.get(state, "not-run")
