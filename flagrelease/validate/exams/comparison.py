"""The decision: two sides and the rules they were made for, to a `Benchmark` of the report."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.errors import VerificationError
from flagrelease.records.report import Benchmark, PartVerdict, Score
from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.exams import figures
from flagrelease.validate.exams.informative import why_not_informative
from flagrelease.validate.exams.obstacles import no_pass, no_verdict
from flagrelease.validate.exams.published import PublishedFigures, beside_published
from flagrelease.validate.exams.side import Side, refuse_differences, refuse_other_rules
from flagrelease.validate.statistics.decision import Decision, SamplingPlan, decide
from flagrelease.validate.statistics.intervals import wilson
from flagrelease.validate.statistics.paired import Paired, pair

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the test said at the first look that decides, or the last that the answers reach.

    Attributes:
        native, chip: the sides with the repeats of that look.
        void: why neither a pass nor a fail of the test is one: sentences.
        obstacles: why a pass of the test is none: sentences.
        published: what others say that the native model scores, beside what it scored here.
        blunt: why the test could not have told anything, if so: a sentence.
    """

    native: Side
    chip: Side
    seen: Paired
    decision: Decision
    void: tuple[str, ...]
    obstacles: tuple[str, ...]
    published: tuple[PublishedFigures, ...]
    blunt: str | None

    @property
    def verdict(self) -> PartVerdict:
        """A pass needs a test that can fail, and answers that can be trusted; a fail counts invalid ones as wrong."""
        found = self.decision.verdict
        if self.void:
            return "cannot-tell"
        if found == "fail":
            return found
        if self.blunt is not None:
            return "not-informative"
        return "cannot-tell" if self.obstacles else found


def plan_of(rules: BenchmarkRules) -> SamplingPlan:
    """The test as the statistics know it."""
    looks = (rules.repeats, rules.most_repeats) if rules.extension > 1 else (rules.repeats,)
    return SamplingPlan(rules.margin / 100, rules.alpha, looks)


def judge(rules: BenchmarkRules, native: Side, chip: Side) -> Judgement:
    """Look as often as the plan says and the answers allow, until a look decides.

    Raises:
        VerificationError: the sides were asked different things, or have too few answers for the first look.
    """
    refuse_differences(native, chip, rules)
    refuse_too_few(rules, native)
    refuse_too_few(rules, chip)
    plan = plan_of(rules)
    for k in [k for k in plan.looks if k <= min(native.repeats, chip.repeats)]:
        sides = native.first(k), chip.first(k)
        seen = pair(sides[0].scores(), sides[1].scores())
        decision = decide(plan, seen)
        if decision.verdict != "cannot-tell":
            break
    blunt = why_not_informative(rules, plan, native)
    published = beside_published(rules, sides[0])
    obstacles = tuple(no_pass(rules, *sides, published))
    return Judgement(*sides, seen, decision, no_verdict(rules, sides[0]), obstacles, published, blunt)


def refuse_too_few(rules: BenchmarkRules, side: Side) -> None:
    """A side must have the answers of the first look.

    Raises:
        VerificationError: it does not.
    """
    if side.repeats < rules.repeats:
        raise VerificationError(
            f"{rules.title}: {side.stack} gave {side.repeats} answers to each question; the rules look after "
            f"{rules.repeats}"
        )


def compare(rules: BenchmarkRules, native: Side | None, chip: Side) -> Benchmark:
    """What the report says of this benchmark. Without a native side there is a score, and no verdict.

    Raises:
        VerificationError: as `judge`.
    """
    if native is None:
        refuse_other_rules(chip, rules, "chip")
        return _benchmark(rules, chip, None, "cannot-tell", figures.of_one_side(chip))
    judged = judge(rules, native, chip)
    drawn = figures.of_two_sides(plan_of(rules), judged.seen, judged.decision, judged.native, judged.chip)
    drawn |= {"obstacles": [*judged.void, *judged.obstacles], "not_informative": judged.blunt}
    drawn |= {"questions": rules.questions, "published": [each.model_dump(mode="json") for each in judged.published]}
    return _benchmark(rules, judged.chip, judged.native, judged.verdict, drawn)


def _benchmark(
    rules: BenchmarkRules, chip: Side, native: Side | None, verdict: PartVerdict, drawn: figures.Figures
) -> Benchmark:
    sampling = f"temperature {rules.temperature:g}, top-p {rules.top_p:g}, at most {rules.max_tokens} tokens"
    return Benchmark(
        task=rules.title,
        dataset=rules.dataset,
        revision=chip.revision,
        metric="accuracy",
        unit="%",
        n=len(chip.items),
        repeats=chip.repeats,
        mode=f"{rules.mode}, {sampling}",
        chip=_score(chip),
        native=None if native is None else _score(native),
        native_stack=None if native is None else native.stack,
        rule=say_rule(rules),
        verdict=verdict,
        figures=drawn,
    )


def say_rule(rules: BenchmarkRules) -> str:
    """The test in words."""
    plan = plan_of(rules)
    when = " and ".join(f"{k} (z {z:.3f})" for k, z in zip(plan.looks, plan.critical, strict=True))
    part = f"; a part of the {rules.questions} questions" if rules.subset and rules.questions is not None else ""
    return (
        f"non-inferiority, margin {rules.margin:g} points, one-sided level {rules.alpha:g}: the release's score less "
        "the native one, less z standard errors within items, is above the margin; "
        f"looks after {when} answers a question{part}"
    )


def _score(side: Side) -> Score:
    value = float(side.scores().mean())
    low, high = wilson(value, len(side.items), CONFIDENCE)
    return Score(value=100 * value, low=100 * low, high=100 * high, confidence=CONFIDENCE)
