"""The verdict on invariance, from answers alone: what each circumstance changed, by the rules and above the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flagrelease.records.report import PartVerdict
from flagrelease.records.rules import InvarianceRules
from flagrelease.validate.invariance.difference import Difference, Said, difference
from flagrelease.validate.invariance.figures import CircumstanceFigures, Kind, LengthFigures, PartedText
from flagrelease.validate.invariance.questions import says


@dataclass(frozen=True, slots=True)
class Pairing:
    """Answers of one circumstance beside those that they should equal. Both hold the same prompts."""

    name: str
    against: str
    kind: Kind
    first: Sequence[Said]
    second: Sequence[Said]


@dataclass(frozen=True, slots=True)
class Limits:
    """What decides: the rules, or what repeating the same circumstance gives where that is more."""

    mean: float
    largest: float
    same: float

    @classmethod
    def above(cls, rules: InvarianceRules, floor: CircumstanceFigures) -> Limits:
        """With the floor of a server that is measured already."""
        return cls(
            max(rules.mean_difference, rules.floors * (floor.mean_difference or 0.0)),
            max(rules.largest_difference, rules.floors * (floor.largest_difference or 0.0)),
            min(rules.same, floor.same / floor.texts) if floor.texts else rules.same,
        )


def judge_pairing(
    pairing: Pairing, rules: InvarianceRules, limits: Limits, answers: Mapping[str, int]
) -> CircumstanceFigures:
    """Measure one circumstance.

    Args:
        pairing: what is compared.
        rules: what counts as a near tie.
        limits: what decides.
        answers: by prompt, the number that is right, where there is one.
    """
    found = [difference(one, other, rules.tie) for one, other in zip(pairing.first, pairing.second, strict=True)]
    apart = [each for one in found for each in one.apart]
    count = {kind: sum(each.parting == kind for each in found) for kind in ("none", "near tie", "clear margin")}
    unknown = len(found) - sum(count.values())
    mean, largest = (sum(apart) / len(apart), max(apart)) if apart else (None, None)
    verdict, why = _verdict(found, mean, largest, limits)
    if odd := sum(said.no_numbers for said in (*pairing.first, *pairing.second)):
        verdict, why = "fail", f"{odd} log-probabilities are NaN or infinite"
    right = [says(said.text, answers[said.prompt]) for said in pairing.second if said.prompt in answers]
    return CircumstanceFigures(
        name=pairing.name,
        against=pairing.against,
        kind=pairing.kind,
        texts=len(found),
        same=count["none"],
        ties=count["near tie"],
        clear=count["clear margin"],
        unknown=unknown,
        tokens=len(apart),
        mean_difference=mean,
        largest_difference=largest,
        right=sum(right),
        asked=len(right),
        cached=sum(said.cached_tokens for said in pairing.second),
        parted=tuple(
            PartedText(prompt=each.prompt, at=each.at, margin=each.margin, parting=each.parting)
            for each in found
            if each.parting != "none"
        ),
        verdict=verdict,
        why=why,
    )


def _verdict(
    found: Sequence[Difference], mean: float | None, largest: float | None, limits: Limits
) -> tuple[PartVerdict, str]:
    """The first reason to fail; none is made up for what the server did not tell."""
    clear = [each for each in found if each.parting == "clear margin"]
    if clear:
        first = max(clear, key=lambda each: each.margin or 0.0)
        return "fail", (
            f"{len(clear)} of {len(found)} texts are others where the model was sure: of {first.prompt} token "
            f"{first.at + 1}, by {first.margin:.2f} nats"
        )
    if mean is not None and mean > limits.mean:
        return "fail", f"log-probabilities are {mean:.2g} nats apart on average, more than {limits.mean:.2g}"
    if largest is not None and largest > limits.largest:
        return "fail", f"a log-probability is {largest:.2g} nats apart, more than {limits.largest:.2g}"
    same = sum(each.parting == "none" for each in found)
    unknown = [each for each in found if each.parting == "unknown margin"]
    if unknown:
        return "cannot-tell", (
            f"{len(unknown)} of {len(found)} texts differ, and without log-probabilities nobody knows whether at a tie"
        )
    if same < limits.same * len(found):
        return "fail", f"only {same} of {len(found)} texts are the same, and {limits.same:.0%} must be"
    ties = len(found) - same
    said = f"{same} of {len(found)} texts are the same" + (f", {ties} part at a near tie" if ties else "")
    return "pass", said if mean is not None else f"{said}; the server gives no log-probabilities to compare"


def judge_lengths(
    alone: Sequence[Said], answers: Mapping[str, int], lengths: Mapping[str, int], rules: InvarianceRules
) -> tuple[CircumstanceFigures, list[LengthFigures]]:
    """Whether what a register says is found again at every length.

    Args:
        alone: answers to the questions, each sent alone.
        answers: by prompt, the number that is right.
        lengths: by prompt, the length that its register was made for.
        rules: what may be lost.
    """
    by_length: dict[int, list[Said]] = {}
    for said in alone:
        if said.prompt in lengths:
            by_length.setdefault(lengths[said.prompt], []).append(said)
    rows = [
        LengthFigures(
            tokens=max(said.prompt_tokens for said in asked),
            right=sum(says(said.text, answers[said.prompt]) for said in asked),
            asked=len(asked),
        )
        for _, asked in sorted(by_length.items())
    ]
    verdict, why = _lengths_verdict(rows, rules)
    right, asked = sum(row.right for row in rows), sum(row.asked for row in rows)
    figures = CircumstanceFigures(
        name="lengths", against="the right answers", kind="lengths", texts=0, same=0, ties=0, clear=0, unknown=0,
        tokens=0, mean_difference=None, largest_difference=None, right=right, asked=asked, cached=0, verdict=verdict,
        why=why,
    )  # fmt: skip
    return figures, rows


def _lengths_verdict(rows: Sequence[LengthFigures], rules: InvarianceRules) -> tuple[PartVerdict, str]:
    first = rows[0].right / rows[0].asked
    if first < rules.right:
        return "not-informative", (
            f"of the shortest register, {rows[0].tokens} tokens, {rows[0].right} of {rows[0].asked} answers are right: "
            "the model does not do this task, so lengths show nothing"
        )
    lost = [row for row in rows if first - row.right / row.asked > rules.lost]
    if lost:
        named = ", ".join(f"{row.right} of {row.asked} at {row.tokens} tokens" for row in lost)
        return "fail", f"right are {rows[0].right} of {rows[0].asked} at {rows[0].tokens} tokens, but {named}"
    return "pass", f"what the register says was found at {len(rows)} lengths up to {rows[-1].tokens} tokens"
