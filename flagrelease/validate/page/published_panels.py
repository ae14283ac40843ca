"""What others say that the native model scores, beside what it scored here."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.page.panel import Panel, Table
from flagrelease.validate.exams.published import PublishedFigures

_SAID = {
    "agrees": "not below it",
    "native-too-low": "native is below it",
    "other-settings": "not compared: other settings",
}


def published_panels(figures: Sequence[PublishedFigures]) -> list[Panel]:
    """The published figures as a table, if the rules name any."""
    if not figures:
        return []
    own = figures[0]
    words = (
        f"The native score here is {own.native:.2f} ({own.native_low:.2f} to {own.native_high:.2f} by the repeats "
        "of each). A damaged source agrees with its own port, so it is compared with what others published; that never "
        "helps a release to pass."
    )
    table = Table((">published", ">interval", "settings", "source", "native here"))
    for each in figures:
        between = f"{each.low:.2f} to {each.high:.2f}"
        table.rows.append((f"{each.score:.2f}", between, each.settings, each.source, _SAID[each.outcome]))
    return [Panel("Published native scores", words, table=table, folded=False)]
