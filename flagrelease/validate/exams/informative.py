"""Whether a benchmark can tell anything, asked of its rules and of the native answers alone.

A test is worth running if a port that knows nothing would fail it and a perfect one would pass. The port that knows
nothing is the one that gives the same answer to every question: the answer that is right most often. It does at least
as well as one that gives no answer, and on multiple choice about as well as guessing.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.exams.side import Side
from flagrelease.validate.statistics.decision import SamplingPlan, decide
from flagrelease.validate.statistics.paired import Scores, pair


def why_not_informative(rules: BenchmarkRules, plan: SamplingPlan, native: Side) -> str | None:
    """Why neither verdict of this test would say anything, in a sentence; None if both would.

    Looks at the last look of `plan` that the native answers reach.
    """
    repeats = max((k for k in plan.looks if k <= native.repeats), default=plan.looks[0])
    side = native.first(repeats)
    scores = side.scores()
    correct = [item.correct for item in side.items]
    ((commonest, _),) = Counter(correct).most_common(1)
    blind = np.repeat([[float(each == commonest)] for each in correct], repeats, axis=1)
    asked = f"{len(correct)} question(s), {repeats} answers to each, margin {rules.margin:g} points"
    right = f"the native model has {100 * scores.mean():.1f}% right"
    if _verdict(plan, scores, blind) != "fail":
        return f"a port that answers {commonest!r} to every question would not have failed ({right}; {asked})"
    if _verdict(plan, scores, np.ones_like(scores)) != "pass":
        return f"a port with every answer right would not have passed ({right}; {asked})"
    return None


def _verdict(plan: SamplingPlan, native: Scores, port: Scores) -> str:
    return decide(plan, pair(native, port)).verdict
