"""One document through the engine, teacher-forced: all at once (prefill), and its end token by token (decode).

The last token is only a target. Under tensor parallelism every rank goes through the same steps and the leader keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flagrelease.engine.decode.stepper import choose_stepper
from flagrelease.engine.loaded import AnyModel
from flagrelease.records.rules import ReplayRules
from flagrelease.validate.logits.distribution import Figures, Kept, compare, join, keep, part
from flagrelease.validate.logits.layers import LayerObserver

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
class ReplayResult:
    """Of one document: what was kept (None if not asked for), and the figures against each kept run by its name."""

    kept: KeptRun | None
    figures: dict[str, FiguresRun]


class Replayer:
    """Runs documents of at most `longest` tokens through one model, one after the other.

    All are decoded in the same caches, so that a device that records its steps records them once.
    """

    def __init__(self, model: AnyModel, rules: ReplayRules, shape: Shape, longest: int) -> None:
        """Allocate the caches; under tensor parallelism on every rank.

        Raises:
            UsageError: the model does not go so far.
            ResourceError: the device has no room.
        """
        self._rules, self._rows = rules, shape.rows
        self._model = replace(model, chunk=shape.chunk)
        self._cache = self._model.new_cache(shape.rows, longest - 1)  # the last token is only a target
        self._stepper = choose_stepper(self._model, self._cache, None)

    def run(
        self,
        tokens: Sequence[int],
        against: dict[str, KeptRun],
        *,
        keeping: bool,
        observer: LayerObserver | None = None,
    ) -> ReplayResult:
        """Both replays of a document.

        Args:
            tokens: at least two.
            against: kept runs of the same tokens; only the leader needs them.
            keeping: keep this run, too.
            observer: of the prefill replay's layers.

        Returns:
            What was made; without content on ranks that are not the leader.
        """
        kept: KeptRun = {}
        figures: dict[str, FiguresRun] = {name: {} for name in against}
        start = decode_start(tokens, self._rules)
        ways = {"prefill": (0, self._prefill(tokens, observer)), "decode": (start, self._decode(tokens, start))}
        for replay in REPLAYS:
            first, steps = ways[replay]
            runs = {name: run[replay] for name, run in against.items()}
            made, seen = self._reduce(steps, tokens, first, runs, keeping=keeping)
            if made is not None:
                kept[replay] = made
            for name, found in seen.items():
                figures[name][replay] = found
        return ReplayResult(kept if keeping else None, figures)

    def _reduce(
        self, steps: Iterator[tuple[int, Tensor]], tokens: Sequence[int], first: int, against: dict[str, Kept], *,
        keeping: bool,
    ) -> tuple[Kept | None, dict[str, Figures]]:  # fmt: skip
        """Steps from position `first` on to what is kept of them. Logits are looked at step by step and let go."""
        made: list[Kept] = []
        seen: dict[str, list[Figures]] = {name: [] for name in against}
        for at, logits in steps:
            if not self._model.groups.is_leader:
                continue
            targets = torch.tensor(tokens[at + 1 : at + 1 + len(logits)], device=logits.device)
            if keeping:
                made.append(keep(logits, targets, min(self._rules.top, logits.shape[-1])))
            for name, run in against.items():
                seen[name].append(compare(part(run, at - first, len(logits)), logits, targets))
        return (join(made) if made else None), {name: join(pieces) for name, pieces in seen.items() if pieces}

    def _prefill(self, tokens: Sequence[int], observer: LayerObserver | None) -> Iterator[tuple[int, Tensor]]:
        """(first position, logits [S, V])."""
        model = self._model if observer is None else replace(observer.model, chunk=self._model.chunk)
        inputs = tokens[:-1]
        cache = model.new_cache(rows=1, context=len(inputs))
        steps = model.prefill_each(cache, 0, inputs)
        for at in range(0, len(inputs), cache.chunk):
            if observer is not None:
                observer.before_step(range(at, at + cache.chunk))
            yield at, next(steps)

    def _decode(self, tokens: Sequence[int], start: int) -> Iterator[tuple[int, Tensor]]:
        """(position, logits [1, V]), one token a step: the steps with which the engine generates on this device."""
        for row in range(self._rows):
            self._cache.free(row)
            if start:
                self._model.prefill(self._cache, row, tokens[:start])
        for position in range(start, len(tokens) - 1):
            yield position, self._stepper.advance([[tokens[position]]] * self._rows)[0]


def decode_start(tokens: Sequence[int], rules: ReplayRules) -> int:
    """First position that the decode replay feeds alone; those before it are its prompt."""
    return max(0, len(tokens) - 1 - rules.decode_tokens)


def tokens_of(tokens: Sequence[int], rules: ReplayRules) -> int:
    """Scored tokens of both replays."""
    return 2 * (len(tokens) - 1) - decode_start(tokens, rules)
