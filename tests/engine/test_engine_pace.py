"""What a long run says about itself."""

from __future__ import annotations

import pytest

from flagrelease.console import Display
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.engine.batch.totals import Totals
from flagrelease.engine.generate.pace import Pace


def test_rate_time_left_and_drafts(capsys: pytest.CaptureFixture[str]) -> None:
    now, totals = 100.0, Totals()
    pace = Pace(40, totals, Display(clock=lambda: now), lambda: now)
    assert pace.note() == "0 tokens, 0.0 tok/s"
    now += 4
    totals.generated = 100
    pace.answered()
    assert capsys.readouterr().err == ""  # not every answer is worth a line
    now += 6
    totals.generated, totals.acceptance = 300, Acceptance(100, (90, 60), (75, 45))
    pace.answered()
    drafts = "80.0% of 150 drafts right, 2.20 tokens a verification (by place: 75%, 45%)"
    said = f"generate: 2 of 40 answers (5%), 300 tokens, 30.0 tok/s, {drafts}, 3 min left\n"
    assert capsys.readouterr().err == said
    now += 7190
    for _ in range(38):
        pace.answered()
    said = capsys.readouterr().err
    assert said.endswith(f"generate: 40 answers in 2.0 h (300 tokens, 0.0 tok/s, {drafts})\n")
    assert said.count(" in 2.0 h") == 1
