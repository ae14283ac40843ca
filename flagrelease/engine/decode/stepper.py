"""What a runner does with a batch: steps of a token or two a row, and drafts, plainly or captured.

Both keep, on every rank, the streams of the positions whose following token the MTP stage has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.drafter import Drafter
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model

# Of torch.distributed: those whose collectives were recorded in a graph, replayed and compared.
CAPTURED_BACKENDS = ("nccl",)


class Stepper(Protocol):
    """Legend: B rows, S the most tokens that a row gets, V vocabulary."""

    def advance(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append up to two tokens (without drafts: one) to every row; float32 logits after each, [B, S, V]."""

    def follow(self, latest: Tensor, rows: Sequence[int]) -> Tensor:
        """Append to each of `rows` its token in `latest`, int64 [B] on the device; logits as `advance`'s, [B, 1, V]."""

    def keep(self, row: int, streams: Tensor) -> None:
        """Streams [M, H] of the last position of a prompt, from which the first draft is made."""

    def draft(self, following: Sequence[Sequence[int]]) -> Tensor:
        """The MTP stage's float32 logits [B, V] for the token after those that followed each row's last ones."""

    def forget(self) -> None:
        """Let go of what was captured: the ranks' communicator does not end while a graph holds its collectives."""


class PlainStepper:
    """By the model's plain forward pass, on any number of ranks."""

    def __init__(self, model: Model, cache: Cache, drafts: Cache | None) -> None:
        """`drafts`: the MTP stage's cache, if there is to be any draft."""
        self._model, self._cache, self._drafts = model, cache, drafts
        shape = 0 if drafts is None else len(cache.lengths), 2, model.config.hc_mult, model.config.hidden_size
        self._streams = torch.zeros(shape, dtype=model.numerics.dtype, device=model.head.device)

    def advance(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """See `Stepper`."""
        streams = self._model.advance(self._cache, token_ids)
        if self._drafts is not None:
            self._streams[:, : streams.shape[1]] = streams
        return self._model.read_out(streams)

    def follow(self, latest: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Stepper`. The plain pass plans a step with the host's numbers, and so waits for `latest`."""
        tokens, going = latest.tolist(), set(rows)
        return self.advance([[token] if row in going else [] for row, token in enumerate(tokens)])

    def keep(self, row: int, streams: Tensor) -> None:
        """See `Stepper`."""
        self._streams[row, 0] = streams

    def draft(self, following: Sequence[Sequence[int]]) -> Tensor:
        """See `Stepper`."""
        assert self._drafts is not None
        return self._model.draft(self._drafts, self._streams, following)

    def forget(self) -> None:
        """See `Stepper`: there is nothing."""


class CapturedStepper:
    """By steps with static tensors, on any number of ranks."""

    def __init__(self, model: Model, cache: Cache, drafts: Cache | None) -> None:
        """`drafts`: the MTP stage's cache, if there is to be any draft."""
        self._decoder = Decoder(model, cache, width=1 if drafts is None else 2)
        self._drafter = None if drafts is None else Drafter(model, drafts, self._decoder.streams)

    def advance(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """See `Stepper`."""
        return self._decoder.advance(token_ids)

    def follow(self, latest: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Stepper`."""
        return self._decoder.follow(latest, rows)

    def keep(self, row: int, streams: Tensor) -> None:
        """See `Stepper`."""
        self._decoder.streams[0, row] = streams

    def draft(self, following: Sequence[Sequence[int]]) -> Tensor:
        """See `Stepper`."""
        assert self._drafter is not None
        return self._drafter.draft(following)

    def forget(self) -> None:
        """See `Stepper`."""
        self._decoder.forget()
        if self._drafter is not None:
            self._drafter.forget()


def choose_stepper(model: Model, cache: Cache, drafts: Cache | None) -> Stepper:
    """Captured on accelerators; plain on a CPU, and over ranks whose collectives a graph is not known to hold."""
    if model.device.type == "cpu" or _collectives_are_apart(model):
        return PlainStepper(model, cache, drafts)
    return CapturedStepper(model, cache, drafts)


def describe_steps(model: Model) -> str:
    """How the steps of this model run: `captured: CUDAGraph`, or `eager: ` and why; and what is slow about them."""
    if model.device.why_eager is not None:
        return f"eager: {model.device.why_eager}"
    if _collectives_are_apart(model):
        return f"eager: no graph is known to hold the collectives of {model.device.dist_backend}"
    if not model.ops.captured:
        return f"eager: {model.ops.name} operators wait for the device"
    slow = sum(block.ffn.experts.format == "fp4" and not block.ffn.experts.arranged for block in model.blocks)
    remark = f"; FP4 experts of {slow} layers by slower kernels (docs/engine.md)" if slow else ""
    return f"captured: {model.device.graph_class}{remark}"


def _collectives_are_apart(model: Model) -> bool:
    return model.groups.mp > 1 and model.device.dist_backend not in CAPTURED_BACKENDS
