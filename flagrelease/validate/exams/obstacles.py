"""What stands between a test and its verdict: answers that cannot be trusted, or that are not of the whole exam."""

from __future__ import annotations

from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.exams.published import PublishedFigures, why_source_is_doubted
from flagrelease.validate.exams.side import Side

_REASONED = 0.9  # of the answers of a thinking model; a server that ignores the switch is far below


def no_verdict(rules: BenchmarkRules, native: Side) -> tuple[str, ...]:
    """Why there is neither a pass nor a fail, whatever the test says: sentences."""
    found = []
    if rules.questions is not None and len(native.items) < rules.questions and not rules.subset:
        found.append(
            f"{len(native.items)} of the {rules.questions} questions of {rules.title} were asked: a part of a dataset "
            "is another exam, and has a verdict only where the rules say `subset: true`"
        )
    if (cut := 100 * native.truncated_rate()) > rules.most_truncated:
        found.append(
            f"{cut:.2f}% of the native answers were cut off at {rules.max_tokens} tokens, at most "
            f"{rules.most_truncated:g}% may: so small a budget does not measure the model, on any machine"
        )
    return tuple(found)


def no_pass(rules: BenchmarkRules, native: Side, chip: Side, published: tuple[PublishedFigures, ...]) -> list[str]:
    """Why a pass of the test is none: sentences. A fail stands: an invalid answer of the release is a wrong one."""
    found = []
    for name, most, rates in (
        ("have no answer in the asked form", rules.most_invalid, (native.invalid_rate(), chip.invalid_rate())),
        ("could not be marked", rules.most_invalid, (native.undecided_rate(), chip.undecided_rate())),
        ("were cut off", rules.most_truncated, (native.truncated_rate(), chip.truncated_rate())),
    ):
        points = [100 * rate for rate in rates]
        seen = f"{points[0]:.2f}% of the native answers and {points[1]:.2f}% of the release's {name}"
        if max(points) > most:
            found.append(f"{seen}; at most {most:g}% may")
        if abs(points[0] - points[1]) > rules.most_difference:
            found.append(f"{seen}; they may differ by {rules.most_difference:g} point(s)")
    for who, side in (("native", native), ("release", chip)):
        if side.repeats_are_copies():
            found.append(f"repeats on the {who} side are copies of the first answer: a constant seed, or a cache")
        reasoned = side.reasoned_rate()
        if (reasoned < _REASONED) if rules.mode != "chat" else (reasoned > 1 - _REASONED):
            found.append(f"{100 * reasoned:.0f}% of the {who} answers have reasoning, in mode {rules.mode}")
    if doubt := why_source_is_doubted(published):
        found.append(doubt)
    return found
