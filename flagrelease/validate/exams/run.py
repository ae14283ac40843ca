"""One side of a benchmark: lm-eval asks, the answerer answers, the journal keeps; and both looks of the test."""

from __future__ import annotations

import math
from pathlib import Path

from flagrelease.errors import ResourceError, VerificationError
from flagrelease.extras import remedy
from flagrelease.records.report import Benchmark
from flagrelease.validate.exams.answerer import Answerer
from flagrelease.validate.exams.comparison import compare, judge, plan_of, refuse_too_few
from flagrelease.validate.exams.exam import Exam
from flagrelease.validate.exams.side import Side, refuse_other_exam
from flagrelease.validate.exams.sitting import Progress, sitting


def examine(
    exam: Exam,
    answerer: Answerer,
    subject: str,
    journal: Path,
    native: Side | None,
    progress: Progress,
    sandbox: str | None = None,
) -> tuple[Benchmark, Side]:
    """Ask until a look of the test decides, or the last has been taken, or the native side has no more answers.

    Raises:
        VerificationError: the sides cannot be compared, or the answers cannot be right.
        NetworkError, UsageError: as of the answerer.
        ResourceError: the journal belongs to another run.
    """
    looks = plan_of(exam.rules).looks
    if native is not None:
        refuse_other_exam(native, exam, answerer.efforts)
        refuse_too_few(exam.rules, native)
    for repeats in looks[:1] if native is None else [k for k in looks if k <= native.repeats]:
        side = run_side(exam, answerer, subject, journal, repeats, progress, native, sandbox)
        if native is None or judge(exam.rules, native, side).decision.verdict != "cannot-tell":
            break
    return compare(exam.rules, native, side), side


def run_side(
    exam: Exam,
    answerer: Answerer,
    subject: str,
    journal: Path,
    repeats: int,
    progress: Progress,
    native: Side | None = None,
    sandbox: str | None = None,
) -> Side:
    """`repeats` answers to each question; those in the journal are not asked for again.

    Args:
        subject: what answers: the SHA-256 of a release's manifest, or a model and its address.
        native: what the answers will be compared with, so that the first unequal prompt ends the run.
        sandbox: the command that runs code, where answers are code.

    Raises:
        As `examine`.
    """
    try:
        from flagrelease.validate.exams.harness.evaluation import evaluate_exam
    except ModuleNotFoundError as error:
        raise ResourceError(f"benchmarks need {error.name}: {remedy('eval')}") from error
    with sitting(exam, answerer, subject, journal, progress, native, sandbox) as sat:
        shares = evaluate_exam(exam, repeats, sat)
        side = sat.side(repeats)
    ours = dict(zip((item.id for item in side.items), side.scores().mean(axis=1).tolist(), strict=True))
    if ours.keys() != shares.keys() or not all(math.isclose(ours[item], shares[item]) for item in ours):
        raise VerificationError(f"{exam.rules.title}: lm-eval's scores are not those of the answers; was it changed?")
    return side
