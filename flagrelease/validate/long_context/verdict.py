"""The verdict on retrieval from long contexts: two sides' answers to the same questions, and nothing else.

Two tests, both fixed by the rules. Over all questions: is the release worse by the margin? In every cell, row and
column: did it lose questions that the native side answers, beyond chance? The second finds what the first averages
away, such as one depth at one length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from flagrelease.errors import VerificationError
from flagrelease.records.report import Stage, StageVerdict
from flagrelease.records.rules import LongContextRules
from flagrelease.validate.exams.side import Answer, AnsweredItem, Side, refuse_differences
from flagrelease.validate.long_context.figures import CellFigures, LongContextFigures, OverallFigures, SideFigures
from flagrelease.validate.long_context.items import LengthRules, item_id
from flagrelease.validate.statistics.decision import Decision, SamplingPlan, decide
from flagrelease.validate.statistics.exact import holm, only_lost
from flagrelease.validate.statistics.paired import Scores, pair_draws

Sides = Mapping[int, Side]  # by length


@dataclass(frozen=True, slots=True)
class _Pair:
    """One question: its length and depth, and the answers of both sides."""

    length: int
    depth: float
    native: Answer
    chip: Answer
    correct: str

    @property
    def right(self) -> tuple[bool, bool]:
        return self.native.value == self.correct, self.chip.value == self.correct


def long_context_stage(rules: LongContextRules, native: Sides, chip: Sides) -> Stage:
    """Compare two sides that were asked the same.

    Raises:
        VerificationError: they were not, or a length is missing.
    """
    pairs = _pairs(rules, native, chip)
    cells, lengths, depths = _cells(rules, pairs)
    sides = _side(native, pairs, 0), _side(chip, pairs, 1)
    figures = LongContextFigures(
        form=rules.form,
        hops=rules.hops,
        items=rules.items,
        native=sides[0],
        chip=sides[1],
        overall=_overall(rules, pairs),
        cells=cells,
        lengths=lengths,
        depths=depths,
        obstacles=_obstacles(rules, *sides),
    )
    verdict = _verdict(rules, figures)
    return Stage(
        name="long-context",
        verdict=verdict,
        detail=_detail(rules, figures, verdict),
        proves=_proves(rules, figures) if verdict == "pass" else (),
        leaves_open=_leaves_open(figures),
        figures=figures.model_dump(mode="json"),
    )


def _pairs(rules: LongContextRules, native: Sides, chip: Sides) -> list[_Pair]:
    pairs = []
    for length in rules.lengths:
        if length not in native or length not in chip:
            raise VerificationError(f"long context: there are no answers for {length} tokens on both sides")
        refuse_differences(native[length], chip[length], LengthRules(rules, length))
        ours, theirs = ({item.id: item for item in side[length].items} for side in (native, chip))
        for depth, number in product(rules.depths, range(rules.items)):
            if (name := item_id(depth, number)) not in ours:
                raise VerificationError(f"long context: the native side was not asked {name!r} at {length} tokens")
            pairs.append(_Pair(length, depth, _first(ours[name]), _first(theirs[name]), ours[name].correct))
    return pairs


def _first(item: AnsweredItem) -> Answer:
    return item.answers[0]


def _decide(rules: LongContextRules, native: Scores, chip: Scores) -> Decision:
    return decide(SamplingPlan(rules.margin / 100, rules.alpha, (1,)), pair_draws(native, chip))


def _overall(rules: LongContextRules, pairs: list[_Pair]) -> OverallFigures:
    right = np.array([pair.right for pair in pairs], dtype=np.float64)
    native, chip = right[:, :1], right[:, 1:]
    decision = _decide(rules, native, chip)
    further = decision.further_needed  # in answers to each question; as many more questions tell as much
    return OverallFigures(
        difference=100 * float(chip.mean() - native.mean()),
        se=100 * decision.se,
        lower=100 * decision.lower,
        upper=100 * decision.upper,
        margin=rules.margin,
        alpha=rules.alpha,
        critical=decision.critical,
        verdict=decision.verdict,
        could_fail=_decide(rules, native, np.zeros_like(chip)).verdict == "fail",
        further_items=None if further is None else further * rules.items,
    )


def _cells(rules: LongContextRules, pairs: list[_Pair]) -> tuple[tuple[CellFigures, ...], ...]:
    """All cells, rows and columns. One family: chance is bounded over all of them together."""
    grid = list(product(rules.lengths, rules.depths))
    rows: list[tuple[int | None, float | None]] = [(length, None) for length in rules.lengths]
    columns: list[tuple[int | None, float | None]] = [(None, depth) for depth in rules.depths]
    regions = [*grid, *rows, *columns]
    members = [
        [pair for pair in pairs if length in (None, pair.length) and depth in (None, pair.depth)]
        for length, depth in regions
    ]
    losses = [_losses(inside) for inside in members]
    falls = holm([only_lost(*loss) for loss in losses], rules.alpha)
    most = rules.alpha / len(regions)
    made = []
    for (length, depth), inside, (lost, gained), fell in zip(regions, members, losses, falls, strict=True):
        native = sum(pair.right[0] for pair in inside)
        verdict = "fail" if fell else "pass" if only_lost(native, 0) <= most else "not-informative"
        made.append(
            CellFigures.model_validate(
                {
                    "length": length,
                    "depth": depth,
                    "items": len(inside),
                    "native": native,
                    "chip": sum(pair.right[1] for pair in inside),
                    "lost": lost,
                    "gained": gained,
                    "p": only_lost(lost, gained),
                    "verdict": verdict,
                    **_faults(inside),
                }
            )
        )
    ends = len(grid), len(grid) + len(rows)
    return tuple(made[: ends[0]]), tuple(made[ends[0] : ends[1]]), tuple(made[ends[1] :])


def _losses(pairs: list[_Pair]) -> tuple[int, int]:
    """Questions that the native side alone solved, and that the release alone solved."""
    return sum(pair.right == (True, False) for pair in pairs), sum(pair.right == (False, True) for pair in pairs)


def _faults(pairs: list[_Pair]) -> dict[str, int]:
    sides = {"native": [pair.native for pair in pairs], "chip": [pair.chip for pair in pairs]}
    found = {f"{name}_invalid": sum(answer.value is None for answer in answers) for name, answers in sides.items()}
    return found | {
        f"{name}_truncated": sum(answer.finish == "length" for answer in answers) for name, answers in sides.items()
    }


def _side(sides: Sides, pairs: list[_Pair], which: int) -> SideFigures:
    answers = [pair.chip if which else pair.native for pair in pairs]
    return SideFigures(
        stack=next(iter(sides.values())).stack,
        score=100 * sum(pair.right[which] for pair in pairs) / len(pairs),
        invalid=100 * sum(answer.value is None for answer in answers) / len(answers),
        truncated=100 * sum(answer.finish == "length" for answer in answers) / len(answers),
        prompt_tokens=sum(item.prompt_tokens for side in sides.values() for item in side.items),
        generated_tokens=sum(answer.tokens for answer in answers),
    )


def _obstacles(rules: LongContextRules, native: SideFigures, chip: SideFigures) -> tuple[str, ...]:
    return tuple(
        f"{side.truncated:.2f}% of the {name} answers were cut off at {rules.max_tokens} tokens; at most "
        f"{rules.most_truncated:g}% may"
        for name, side in (("native", native), ("release's", chip))
        if side.truncated > rules.most_truncated
    )


def _verdict(rules: LongContextRules, figures: LongContextFigures) -> StageVerdict:
    if figures.native.truncated > rules.most_truncated:
        return "cannot-tell"
    if figures.overall.verdict == "fail" or _collapsed(figures):
        return "fail"
    if not figures.overall.could_fail:
        return "not-informative"
    return "cannot-tell" if figures.obstacles else figures.overall.verdict


def _collapsed(figures: LongContextFigures) -> list[CellFigures]:
    """What fell, cells first."""
    return [cell for cell in (*figures.cells, *figures.lengths, *figures.depths) if cell.verdict == "fail"]


def _detail(rules: LongContextRules, figures: LongContextFigures, verdict: StageVerdict) -> str:
    chip, native = figures.chip, figures.native
    both = f"{chip.score:.1f}% of the questions are answered, {native.score:.1f}% by the native side"
    if chip.truncated or native.truncated or chip.invalid or native.invalid:
        both += (
            f" (cut off {chip.truncated:.1f}% and {native.truncated:.1f}%, without a number {chip.invalid:.1f}% and "
            f"{native.invalid:.1f}%)"
        )
    if verdict == "cannot-tell" and figures.obstacles:
        return f"No verdict: {'; '.join(figures.obstacles)}."
    if verdict == "not-informative":
        asked = len(figures.cells) * rules.items
        return (
            f"The native side answers {figures.native.score:.1f}% of {asked} questions: a port that answers none could "
            f"not be told to be worse by {rules.margin:g} points, so nothing was tested."
        )
    if collapsed := _collapsed(figures):
        worst = min(collapsed, key=lambda cell: cell.p)
        return (
            f"{both}. Lost beyond chance: {_say_place(worst)} ({worst.chip} of {worst.items}, native {worst.native})"
            + (f", and {len(collapsed) - 1} more rows, columns or cells." if len(collapsed) > 1 else ".")
        )
    if verdict == "fail":
        return f"{both}: worse by more than {rules.margin:g} points."
    if verdict == "cannot-tell":
        more = figures.overall.further_items
        said = "no number of questions would decide" if more is None else f"{more} more in each cell would decide"
        return f"{both}; whether the release is worse by {rules.margin:g} points is not decided: {said}."
    return f"{both}: not worse by {rules.margin:g} points, and no length or depth is lost."


def _say_place(cell: CellFigures) -> str:
    depth = "all depths" if cell.depth is None else f"depth {cell.depth:g}%"
    return f"{depth}, {'all lengths' if cell.length is None else f'{cell.length} tokens'}"


def _proves(rules: LongContextRules, figures: LongContextFigures) -> tuple[str, ...]:
    return (
        f"Over {len(figures.cells) * rules.items} questions in prompts of {rules.lengths[0]} to {rules.lengths[-1]} "
        f"tokens, each about an entry that {rules.hops} entries lead to, the release is not worse than the native side "
        f"by {rules.margin:g} points.",
        "No length, no depth and no cell of both is lost beyond chance.",
    )


def _leaves_open(figures: LongContextFigures) -> tuple[str, ...]:
    blind = [cell for cell in figures.cells if cell.verdict == "not-informative"]
    lines = ["Understanding of long texts beyond finding and following entries; lengths and depths between these."]
    if blind:
        lines.append(
            f"{len(blind)} of {len(figures.cells)} cells, where the native side answers too few questions for a loss "
            f"to show: {'; '.join(_say_place(cell) for cell in blind[:6])}{'; ..' if len(blind) > 6 else ''}."
        )
    return tuple(lines)
