"""One document through the engine, teacher-forced: all at once (prefill), and its end token by token (decode).

The last token is only a target. Under tensor parallelism every rank goes through the same steps and the leader keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flagrelease.engine.model import Model
from flagrelease.engine.stepper import choose_stepper
from flagrelease.validate.logits.distribution import Figures, Kept, compare, join, keep, part
from flagrelease.validate.logits.layers import LayerObserver
from flagrelease.validation_rules import ReplayRules

Replay = Literal["prefill", "decode"]
REPLAYS: tuple[Replay, ...] = ("prefill", "decode")
KeptRun = dict[Replay, Kept]
FiguresRun = dict[Replay, Figures]


@dataclass(frozen=True, slots=True)
class Shape:
    """What changes the order of additions and nothing else: tokens of a prefill step, equal rows of a decode step."""

    chunk: int
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one document: what was kept (None if not asked for), and the figures against each kept run by its name."""

    kept: KeptRun | None
    figures: dict[str, FiguresRun]


def run_document(
    model: Model,
    tokens: Sequence[int],
    rules: ReplayRules,
    shape: Shape,
    against: dict[str, KeptRun],
    *,
    keeping: bool,
    observer: LayerObserver | None = None,
) -> Outcome:
    """Run a document in both replays.

    Args:
        model: of any numerics.
        tokens: at least two.
        rules: how much is kept, how much is decoded.
        shape: of the steps.
        against: kept runs of the same tokens.
        keeping: keep this run, too.
        observer: of the prefill replay's layers.

    Returns:
        What was made; without content on ranks that are not the leader.
    """
    kept: KeptRun = {}
    figures: dict[str, FiguresRun] = {name: {} for name in against}
    starts = {"prefill": 0, "decode": decode_start(tokens, rules)}
    for replay in REPLAYS:
        made: list[Kept] = []
        seen: dict[str, list[Figures]] = {name: [] for name in against}
        steps = (
            _prefill(model, tokens, shape, observer) if replay == "prefill" else _decode(model, tokens, rules, shape)
        )
        for at, logits in steps:
            if not model.groups.is_leader:
                continue
            targets = torch.tensor(tokens[at + 1 : at + 1 + len(logits)], device=logits.device)
            if keeping:
                made.append(keep(logits, targets, min(rules.top, logits.shape[-1])))
            for name, run in against.items():
                seen[name].append(compare(part(run[replay], at - starts[replay], len(logits)), logits, targets))
        if made:
            kept[replay] = join(made)
        for name in against:
            if seen[name]:
                figures[name][replay] = join(seen[name])
    return Outcome(kept if keeping else None, figures)


def decode_start(tokens: Sequence[int], rules: ReplayRules) -> int:
    """First position that the decode replay feeds alone; those before it are its prompt."""
    return max(0, len(tokens) - 1 - rules.decode_tokens)


def _prefill(
    model: Model, tokens: Sequence[int], shape: Shape, observer: LayerObserver | None
) -> Iterator[tuple[int, Tensor]]:
    """(first position, logits [S, V])."""
    seen = replace(model if observer is None else observer.model, chunk=shape.chunk)
    inputs = tokens[:-1]
    cache = seen.new_cache(rows=1, context=len(inputs))
    steps = seen.prefill_each(cache, 0, inputs)
    for at in range(0, len(inputs), cache.chunk):
        if observer is not None:
            observer.before_step(range(at, at + cache.chunk))
        yield at, next(steps)


def _decode(model: Model, tokens: Sequence[int], rules: ReplayRules, shape: Shape) -> Iterator[tuple[int, Tensor]]:
    """(position, logits [1, V]), one token a step: the steps with which the engine generates on this device."""
    start = decode_start(tokens, rules)
    shaped = replace(model, chunk=shape.chunk)
    cache = shaped.new_cache(rows=shape.rows, context=len(tokens) - 1)
    for row in range(shape.rows if start else 0):
        shaped.prefill(cache, row, tokens[:start])
    stepper = choose_stepper(shaped, cache, None)
    for position in range(start, len(tokens) - 1):
        yield position, stepper.advance([[tokens[position]]] * shape.rows)[0]


def tokens_of(tokens: Sequence[int], rules: ReplayRules) -> int:
    """Scored tokens of both replays."""
    return 2 * (len(tokens) - 1) - decode_start(tokens, rules)
