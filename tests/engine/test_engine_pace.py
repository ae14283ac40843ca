"""What a long run says about itself."""

from __future__ import annotations

import pytest

from flagrelease.engine.generate.pace import Pace
from flagrelease.engine.serve.scheduler import Totals


def test_rate_time_left_and_drafts(capsys: pytest.CaptureFixture[str]) -> None:
    now, totals = 100.0, Totals()
    pace = Pace(40, totals, lambda: now)
    assert pace.line() == "0 of 40 answers, 0.0 tok/s"
    now += 4
    totals.generated = 100
    pace.answered()
    assert capsys.readouterr().err == ""  # not every answer is worth a line
    now += 6
    totals.generated, totals.drafted, totals.accepted = 300, 150, 120
    pace.answered()
    assert capsys.readouterr().err == "2 of 40 answers, 30.0 tok/s, about 3 min left, 80.0% of 150 drafts right\n"
    now += 7190
    for _ in range(38):
        pace.answered()
    assert pace.summary() == "40 of 40 answers, 0.0 tok/s, 80.0% of 150 drafts right; 300 tokens in 2.0 h"
