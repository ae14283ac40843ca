"""How long the ranks' collectives of a piece of work take alone: what a step would save if the links took no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from flagrelease.bench.roof import seconds
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.model import Model

Call = tuple[Callable[[Groups, Tensor], Tensor], torch.Size, torch.dtype]


@dataclass(frozen=True, slots=True)
class _NotedGroups(Groups):
    """`Groups` that note each collective of tensors, and what it was given."""

    calls: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, groups: Groups) -> _NotedGroups:
        of_groups = {each.name: getattr(groups, each.name) for each in fields(groups)}
        return cls(**of_groups | {"exchange": None})  # a kernel that exchanges besides other work cannot be noted

    def all_sum(self, x: Tensor) -> Tensor:
        return self._noted(Groups.all_sum, x)

    def together(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return self._noted(lambda groups, x: Groups.together(_spread(groups), x, shape), x) if self.is_spread else x

    def sum_tokens(self, x: Tensor) -> Tensor:
        if not self.is_spread:
            return self.all_sum(x)
        return self._noted(lambda groups, x: Groups.sum_tokens(_spread(groups), x), x)

    def gather_vocab(self, x: Tensor) -> Tensor:
        return self._noted(Groups.gather_vocab, x)

    def gather_heads(self, o: Tensor) -> Tensor:
        return self._noted(Groups.gather_heads, o)

    def sum_o_lora(self, y: Tensor) -> Tensor:
        return self._noted(Groups.sum_o_lora, y)

    def sum_output(self, x: Tensor) -> Tensor:
        return self.sum_tokens(x) if self.is_spread else self._noted(Groups.sum_output, x)

    def _noted(self, collective: Callable[[Groups, Tensor], Tensor], x: Tensor) -> Tensor:
        self.calls.append((collective, x.shape, x.dtype))
        return collective(self, x)


def _spread(groups: Groups) -> Groups:
    return replace(groups, is_spread=True)


def collective_seconds(model: Model, work: Callable[[Model], object]) -> float:
    """Of the collectives that `work` does with the model it is given, one after the other and captured; 0 on one rank.

    On every rank, with the same work. A sum that a kernel does besides other work counts as a launch of its own.
    """
    if model.groups.mp == 1:
        return 0.0
    noted, eager = _NotedGroups.of(model.groups), copy(model.ops)
    eager.captured = False  # a step that is captured would be noted more than once
    work(replace(model, groups=noted, ops=eager))
    place = model.head.device
    made = {(shape, dtype): torch.zeros(shape, dtype=dtype, device=place) for _, shape, dtype in noted.calls}

    def replay() -> None:
        for collective, shape, dtype in noted.calls:
            collective(model.groups, made[shape, dtype])

    return seconds(model.device, model.device.capture(replay), inner=10)
