"""The small trained model answers questions about ledgers, its engine sound or with one planted defect.

The three that public ports had: an indexer that prefers recent keys (a graph captured it so), a window one too short,
and a compressor that forgets the tokens before a border of chunks (chunked prefill).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from scripted_contexts import TINY, exams_of
from torch import Tensor

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.kernels.operators import OPERATORS, Operators
from flagrelease.engine.numerics import NumericsName
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4 import step as steps
from flagrelease.engine.v4.model import Model
from flagrelease.records.rules import LongContextRules
from flagrelease.validate.exams.engine_answerer import EngineAnswerer
from flagrelease.validate.exams.side import Side
from flagrelease.validate.exams.sitting import sitting

Spoil = Callable[[Operators], None]


class OwnOperators(Operators):
    """The defined ones, each of which a defect may take the place of."""

    name = "spoilt"

    def __init__(self) -> None:
        for name in OPERATORS:
            setattr(self, name, getattr(Operators, name))


def recent_entries(ops: Operators) -> None:
    """The indexer's choice is the newest entries, whatever they score."""

    def topk_visible(scores: Tensor, visible: Tensor, k: int, *rest: Any) -> Tensor:
        recent = torch.arange(scores.shape[-1], dtype=torch.float32).expand(scores.shape)
        return Operators.topk_visible(recent, visible, k, *rest)

    def choose_entries(q: Tensor, keys: Tensor, weights: Tensor, visible: Tensor, k: int) -> Tensor:
        recent = torch.arange(keys.shape[1], dtype=torch.float32).expand(len(q), 1, keys.shape[1])
        return Operators.topk_visible(recent, visible[:, None], k)[:, 0]

    ops.topk_visible, ops.choose_entries = topk_visible, choose_entries


def short_window_in_decode(ops: Operators) -> None:
    """The oldest key of the window is not seen by a token that is fed alone."""

    def decode_attention(*given: Any, **more: Any) -> Any:
        return Operators.decode_attention(*given[:8], given[8] - 1, *given[9:], **more)

    ops.decode_attention = decode_attention


def dropped_at_borders(ops: Operators) -> None:
    """Of a window that began in the chunk before, the compressor has only the tokens of this chunk."""

    def compress_windows(*given: Any) -> Tensor:
        pending, source = given[3], given[6]
        empty = pending.shape[1] - 2
        return Operators.compress_windows(*given[:6], torch.where(source < empty, empty, source), *given[7:])

    ops.compress_windows = compress_windows


@contextmanager
def short_window_in_prefill() -> Iterator[None]:
    """The same for the tokens of a prompt, whose windows are laid out for all layers at once."""
    sound = steps.window_slots

    def short(columns: int, *rest: Any) -> Tensor:
        return torch.cat((torch.full_like((slots := sound(columns, *rest))[..., :1], -1), slots[..., 1:]), -1)

    with mock.patch.object(steps, "window_slots", short):
        yield


@dataclass(frozen=True)
class ContextDefect:
    """`caught`: by which of `long_context_stage`'s two tests; neither where it is none."""

    name: str
    spoil: Spoil | None = None
    window: bool = False
    numerics: NumericsName = "native"
    chunk: int = 512


def ledger_model(defect: ContextDefect) -> Model:
    model = engine.load(TINY, defect.numerics)
    ops = OwnOperators()
    if defect.spoil is not None:
        defect.spoil(ops)
    return replace(model, ops=ops, chunk=defect.chunk)


def answer_ledgers(rules: LongContextRules, defect: ContextDefect, folder: Path) -> dict[int, Side]:
    """What the model answers, by length."""
    model, tokenizer, sides = ledger_model(defect), Tokenizer(TINY), {}
    with short_window_in_prefill() if defect.window else nullcontext():
        for length, exam in exams_of(rules).items():
            scheduler = Scheduler(Runner(model, rows=16, context=length + rules.max_tokens), tokenizer)
            answerer = EngineAnswerer(scheduler, "engine", read_efforts(TINY))
            with sitting(exam, answerer, defect.name, folder / f"{length}.jsonl", lambda *_: None, None) as sat:
                sides[length] = sat.ask_all(1)
    return sides
