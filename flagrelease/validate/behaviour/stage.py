"""The verdict on behaviour: prompts of the same tokens, the release's own format, and no rate worse than the margin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flagrelease.errors import VerificationError
from flagrelease.records.report import PartVerdict, Stage, together
from flagrelease.records.rules import WISHES, BehaviourRules, Wish
from flagrelease.validate.behaviour.answers import Behaviour, Reply
from flagrelease.validate.behaviour.golden import GoldenPairs, check_golden_pairs
from flagrelease.validate.behaviour.rates import excess, judge_rate, needed_for_zero


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RateFigures(_Strict):
    """One thing that answers may do, on both sides: counts, and the excess of the port in points of 100."""

    name: str
    port: int
    port_of: int
    native: int
    native_of: int
    difference: float
    low: float
    high: float
    verdict: PartVerdict


class BehaviourFigures(_Strict):
    """`figures` of the stage.

    Attributes:
        token_mismatches: ids of prompts that became other tokens than the native ones.
        only_counted: ids of prompts whose tokens a server does not tell: only their numbers were compared.
        served: the sides that a server answered.
    """

    margin: float
    prompts: int
    repeats: int
    native_stack: str
    golden_pairs: int
    golden_differing: tuple[str, ...]
    token_mismatches: tuple[str, ...]
    only_counted: tuple[str, ...] = ()
    served: tuple[str, ...] = ()
    rates: tuple[RateFigures, ...]


@dataclass(frozen=True, slots=True)
class _Sign:
    """What is looked for among the answers to prompts of some kinds."""

    name: str
    among: tuple[Wish, ...]
    holds: Callable[[Reply], bool]


_SIGNS = (
    _Sign("ends in a loop", WISHES, lambda answer: answer.loops),
    _Sign("cut off at the limit of tokens", WISHES, lambda answer: answer.finish == "length"),
    _Sign("breaks the chat format", WISHES, lambda answer: answer.broken),
    _Sign("no answer in words", ("text",), lambda answer: not answer.granted),
    _Sign("no valid tool call", ("tool",), lambda answer: not answer.granted),
    _Sign("no valid JSON", ("json",), lambda answer: not answer.granted),
)


def behaviour_stage(release: Path, port: Behaviour, native: Behaviour) -> Stage:
    """Compare two sides that were asked the same.

    Raises:
        VerificationError: they were not: other prompts or rules.
    """
    if (port.prompts_sha256, port.rules) != (native.prompts_sha256, native.rules):
        raise VerificationError("the baseline's behaviour was asked with other prompts or rules; record it again")
    if [(a.prompt, a.repeat) for a in port.answers] != [(a.prompt, a.repeat) for a in native.answers]:
        raise VerificationError("the baseline's behaviour does not hold an answer for each prompt; record it again")
    golden = GoldenPairs(0, ()) if _is_served(port) else check_golden_pairs(release)  # a server encodes chats by itself
    pairs = list(zip(port.answers, native.answers, strict=True))
    mismatches = tuple(dict.fromkeys(a.prompt for a, b in pairs if _other_tokens(a, b)))
    counted = tuple(dict.fromkeys(a.prompt for a, b in pairs if None in (a.prompt_sha256, b.prompt_sha256)))
    asked = {answer.wish for answer in port.answers}
    rates = tuple(_rate(sign, port, native, port.rules) for sign in _SIGNS if asked.intersection(sign.among))
    verdict = _verdict(golden, mismatches, rates)
    figures = BehaviourFigures(
        margin=port.rules.margin,
        prompts=len({answer.prompt for answer in port.answers}),
        repeats=port.rules.repeats,
        native_stack=native.stack,
        golden_pairs=golden.pairs,
        golden_differing=golden.differing,
        token_mismatches=mismatches,
        only_counted=counted,
        served=tuple(side for side, of in (("this release", port), ("native", native)) if _is_served(of)),
        rates=rates,
    )
    return Stage(
        name="behaviour",
        verdict=verdict,
        detail=_detail(figures, port.rules),
        proves=_proves(figures) if verdict == "pass" else (),
        leaves_open=_leaves_open(figures),
        figures=figures.model_dump(mode="json"),
    )


def _other_tokens(port: Reply, native: Reply) -> bool:
    digests = {port.prompt_sha256, native.prompt_sha256} - {None}
    return port.prompt_tokens != native.prompt_tokens or len(digests) == 2


def _is_served(side: Behaviour) -> bool:
    return any(answer.by_server for answer in side.answers)


def _rate(sign: _Sign, port: Behaviour, native: Behaviour, rules: BehaviourRules) -> RateFigures:
    counts = []
    for side in (port, native):
        among = [answer for answer in side.answers if answer.wish in sign.among]
        counts.append((sum(map(sign.holds, among)), len(among)))
    found = excess(counts[0], counts[1], rules.alpha)
    return RateFigures(
        name=sign.name,
        port=counts[0][0],
        port_of=counts[0][1],
        native=counts[1][0],
        native_of=counts[1][1],
        difference=100 * found.difference,
        low=100 * found.low,
        high=100 * found.high,
        verdict=judge_rate(counts[0], counts[1], rules.margin / 100, rules.alpha),
    )


def _verdict(golden: GoldenPairs, mismatches: tuple[str, ...], rates: tuple[RateFigures, ...]) -> PartVerdict:
    if golden.differing or mismatches:
        return "fail"
    return together(rate.verdict for rate in rates)


def _detail(figures: BehaviourFigures, rules: BehaviourRules) -> str:
    if figures.golden_differing:
        return f"The chat encoding does not give the release's own text for {', '.join(figures.golden_differing)}."
    if figures.token_mismatches:
        return f"{len(figures.token_mismatches)} prompts become other tokens than on the native side."
    failed = [rate.name for rate in figures.rates if rate.verdict == "fail"]
    unclear = [rate for rate in figures.rates if rate.verdict == "cannot-tell"]
    if failed:
        return f"More often than the native model, beyond the margin: {', '.join(failed)}."
    if unclear:
        fewest = min(rate.port_of for rate in unclear)
        least = needed_for_zero(rules.margin / 100, rules.alpha)
        return (
            f"{fewest} answers do not tell an excess of {rules.margin:g} points: {', '.join(r.name for r in unclear)}. "
            f"At least {least} of each kind are needed."
        )
    if blunt := [rate for rate in figures.rates if rate.verdict == "not-informative"]:
        said = ", ".join(f"{rate.name} (native {rate.native} of {rate.native_of})" for rate in blunt)
        return (
            f"Not informative: with a margin of {rules.margin:g} points not even a port that does it in every answer "
            f"would have failed: {said}."
        )
    answers = figures.prompts * figures.repeats
    return f"{answers} answers behave like the native model's, within {rules.margin:g} points of 100."


def _proves(figures: BehaviourFigures) -> tuple[str, ...]:
    exact = figures.prompts - len(figures.only_counted)
    lines = [f"{_count(exact, figures.prompts)} become the same tokens as on the native side."] if exact else []
    if figures.only_counted:
        counted = _count(len(figures.only_counted), figures.prompts)
        lines.append(f"{counted} have as many tokens as on the native side.")
    if figures.golden_pairs:
        lines.append(f"The chat encoding gives the release's own text for all {figures.golden_pairs} of its examples.")
    signs = ", ".join(rate.name for rate in figures.rates)
    lines.append(f"At most {figures.margin:g} points of 100 more answers than the native model's show a sign: {signs}.")
    return tuple(lines)


def _count(some: int, prompts: int) -> str:
    return f"All {prompts} prompts" if some == prompts else f"{some} of {prompts} prompts"


def _leaves_open(figures: BehaviourFigures) -> tuple[str, ...]:
    lines = ["Whether what the answers say is right.", "Behaviour in chats longer than these prompts."]
    if "this release" in figures.served:
        lines.append("That the server ran this very release on the chip: nothing in its answers shows its weights.")
        lines.append("The chat format beyond these prompts: the server writes it by itself.")
    elif not figures.golden_pairs:
        lines.append("The chat format beyond these prompts: the release carries no examples of it.")
    if figures.served:
        sides = " and ".join(figures.served)
        lines.append(
            f"What the server's own parsers mended or dropped ({sides}): calls and thoughts are judged as it gave them."
        )
    if figures.only_counted:
        counted = _count(len(figures.only_counted), figures.prompts)
        lines.append(f"{counted} were compared by how many tokens they have: the server does not tell which.")
    return tuple(lines)
