"""The stage's verdict, from what was said in every circumstance. It asks nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flagrelease.records.report import Stage, together
from flagrelease.records.rules import InvarianceRules
from flagrelease.validate.invariance.difference import Said
from flagrelease.validate.invariance.figures import CircumstanceFigures, InvarianceFigures
from flagrelease.validate.invariance.prompts import InvariancePrompt, register_lengths, right_answers
from flagrelease.validate.invariance.verdict import Limits, Pairing, judge_lengths, judge_pairing

ALONE, AGAIN, ONCE_MORE, STREAMED = "alone", "again", "once more", "streamed"


def at_once(count: int) -> str:
    """The circumstance of so many requests at once."""
    return f"{count} at once"


@dataclass(frozen=True, slots=True)
class Heard:
    """Everything that was said.

    Attributes:
        server: the main one, without anything secret; `variants` likewise, by name.
        said: answers of the main server by circumstance, in the order of the prompts.
        varied: answers of each variant, alone.
    """

    server: str
    variants: Mapping[str, str]
    said: Mapping[str, Sequence[Said]]
    varied: Mapping[str, Sequence[Said]]


def invariance_stage(heard: Heard, prompts: Sequence[InvariancePrompt], rules: InvarianceRules) -> Stage:
    """Compare every circumstance with what it should equal."""
    answers = right_answers(prompts)
    floor = Pairing("sent again", f"sent {ONCE_MORE}", "floor", heard.said[AGAIN], heard.said[ONCE_MORE])
    unfloored = Limits(rules.mean_difference, rules.largest_difference, rules.same)
    repeated = judge_pairing(floor, rules, unfloored, answers)
    limits = Limits.above(rules, repeated)
    rows = [repeated, *(judge_pairing(each, rules, limits, answers) for each in _pairings(heard, prompts, rules))]
    by_length, lengths = judge_lengths(heard.said[ALONE], answers, register_lengths(prompts), rules)
    rows.append(by_length)
    every = [said for group in (*heard.said.values(), *heard.varied.values()) for said in group]
    figures = InvarianceFigures(
        server=heard.server,
        variants=dict(heard.variants),
        requests=len(every),
        prompt_tokens=sum(said.prompt_tokens for said in every),
        tokens=sum(said.answer_tokens for said in every),
        mean_limit=limits.mean,
        largest_limit=limits.largest,
        same_limit=limits.same,
        tie=rules.tie,
        circumstances=tuple(rows),
        lengths=tuple(lengths),
    )
    verdict = together(row.verdict for row in rows)
    return Stage(
        name="invariance",
        verdict=verdict,
        detail=_detail(rows),
        proves=tuple(_proves(figures)) if verdict == "pass" else (),
        leaves_open=tuple(_leaves_open(figures)),
        figures=figures.model_dump(mode="json"),
    )


def _pairings(heard: Heard, prompts: Sequence[InvariancePrompt], rules: InvarianceRules) -> Iterator[Pairing]:
    alone, again = heard.said[ALONE], heard.said[AGAIN]
    for name, shares in (("after the whole prompt", False), ("after a shared beginning", True)):
        chosen = [n for n, prompt in enumerate(prompts) if prompt.shares == shares]
        if chosen:
            first, second = [alone[n] for n in chosen], [again[n] for n in chosen]
            yield Pairing(name, AGAIN if shares else ALONE, "circumstance", first, second)
    for name in (STREAMED, *map(at_once, rules.concurrency)):
        yield Pairing(name, AGAIN, "circumstance", again, heard.said[name])
    for name, said in heard.varied.items():
        yield Pairing(f"variant {name}", ALONE, "variant", alone, said)


def _detail(rows: Sequence[CircumstanceFigures]) -> str:
    failed = [row for row in rows if row.verdict == "fail"]
    unclear = [row for row in rows if row.verdict in ("cannot-tell", "not-informative")]
    if failed:
        return f"{failed[0].name}: {failed[0].why}." + (
            f" Also failed: {', '.join(row.name for row in failed[1:])}." if len(failed) > 1 else ""
        )
    if unclear:
        return f"{unclear[0].name}: {unclear[0].why}."
    return f"In {len(rows)} circumstances the same requests have the same answers, but for near ties."


def _proves(figures: InvarianceFigures) -> Iterator[str]:
    compared = [row for row in figures.circumstances if row.kind != "lengths"]
    largest = max((row.largest_difference or 0.0 for row in compared), default=0.0)
    yield (
        f"Greedy answers do not depend on the circumstance: {sum(row.same for row in compared)} of "
        f"{sum(row.texts for row in compared)} pairs of texts are equal, the others part where the model was less than "
        f"{figures.tie:g} nats sure, and no shared log-probability is more than {largest:.2g} nats apart."
    )
    if figures.lengths:
        yield f"What a prompt says is found again at {len(figures.lengths)} lengths, " + (
            f"from {figures.lengths[0].tokens} to {figures.lengths[-1].tokens} tokens."
        )


def _leaves_open(figures: InvarianceFigures) -> Iterator[str]:
    yield "Whether the answers are those of the native model: a server can be wrong in the same way each time."
    if not figures.variants:
        yield "Graphs, speculation and other chunk sizes: no server that was started otherwise was given (--variant)."
    if not any(row.cached for row in figures.circumstances):
        yield "Whether any prompt's beginning came from a cache: the server does not say so."
