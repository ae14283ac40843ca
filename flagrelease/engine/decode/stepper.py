"""What a runner does with a batch: steps of a token a row and its drafts, and the next drafts, plainly or captured.

Both keep, on every rank, what the draft stages read of the positions whose following token they have not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from flagrelease.engine.decode.block_drafter import BlockDrafter
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.drafter import Drafter
from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.row_caches import RowCaches
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.drafting import Drafting
from flagrelease.engine.v4.dspark_head import Choose, Drafts
from flagrelease.engine.v4.model import Model

# Of torch.distributed: those whose collectives were recorded in a graph, replayed and compared.
CAPTURED_BACKENDS = ("nccl",)


class Stepper(Protocol):
    """Legend: B rows, S the most tokens that a row gets, V vocabulary."""

    def advance(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append a token and its drafts to every row; float32 logits after each, [B, S, V]."""

    def take_back(self, row: int, count: int) -> None:
        """Forget the last `count` tokens that the last `advance` appended to a row: drafts that were wrong."""

    def follow(self, latest: Tensor, rows: Sequence[int]) -> Tensor:
        """Append to each of `rows` its token in `latest`, int64 [B] on the device; logits as `advance`'s, [B, 1, V].

        Nothing is drafted, but draft stages read the position before, whose following token this is: so they can go on
        to draft after any such step. No step with drafts may be left of which tokens are to be taken back.
        """

    def keep(self, row: int, features: Tensor) -> None:
        """What the draft stages read of the last position of a prompt, from which the first draft is made."""

    def draft(self, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """Guess what comes after the tokens that followed each row's last ones, as `Drafting.draft`."""

    def forget(self) -> None:
        """Let go of what was captured: the ranks' communicator does not end while a graph holds its collectives."""


class PlainStepper:
    """By the model's plain forward pass, on any number of ranks."""

    def __init__(self, model: AnyModel, cache: RowCaches[Any], drafting: Drafting | None) -> None:
        """`drafting`: if there is to be any draft."""
        self._model, self._cache, self._drafting = model, cache, drafting
        if drafting is not None:
            shape = len(cache.lengths), drafting.most + 1, *drafting.width
            self._features = torch.zeros(shape, dtype=model.numerics.dtype, device=model.head.device)

    def advance(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """See `Stepper`."""
        width = max(map(len, token_ids))
        streams, features = self._model.advance_watched(self._cache, token_ids)
        if self._drafting is not None:
            self._features[:, :width] = features
        return self._model.read_out(streams)

    def take_back(self, row: int, count: int) -> None:
        """See `Stepper`."""
        self._cache.take_back(row, count)

    def follow(self, latest: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Stepper`. The plain pass plans a step with the host's numbers, and so waits for `latest`."""
        tokens, going = latest.tolist(), set(rows)
        following = [[token] if row in going else [] for row, token in enumerate(tokens)]
        if self._drafting is not None:
            self._drafting.read(slice(0, len(tokens)), self._features, following)
        return self.advance(following)

    def keep(self, row: int, features: Tensor) -> None:
        """See `Stepper`."""
        self._features[row, 0] = features

    def draft(self, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """See `Stepper`."""
        assert self._drafting is not None
        return self._drafting.draft(self._features, following, choose)

    def forget(self) -> None:
        """See `Stepper`: there is nothing."""


class CapturedStepper:
    """By steps with static tensors, on any number of ranks."""

    def __init__(self, model: Model, cache: Cache, drafting: Drafting | None) -> None:
        """`drafting`: if there is to be any draft; its cache is filled by captured steps too."""
        self._cache = cache
        self._decoder = Decoder(model, cache, width=1 if drafting is None else drafting.most + 1)
        self._drafter = None if drafting is None else open_drafter(model, drafting, self._decoder.features)

    def advance(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """See `Stepper`."""
        return self._decoder.advance(token_ids)

    def take_back(self, row: int, count: int) -> None:
        """See `Stepper`."""
        self._cache.take_back(row, count)

    def follow(self, latest: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Stepper`."""
        if self._drafter is not None:
            self._drafter.follow(latest, rows)
        return self._decoder.follow(latest, rows)

    def keep(self, row: int, features: Tensor) -> None:
        """See `Stepper`."""
        self._decoder.features[0, row] = features

    def draft(self, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """See `Stepper`."""
        assert self._drafter is not None
        return self._drafter.guess(following, choose)

    def forget(self) -> None:
        """See `Stepper`."""
        self._decoder.forget()
        if self._drafter is not None:
            self._drafter.forget()


def open_drafter(model: Model, drafting: Drafting, features: Tensor) -> Drafter | BlockDrafter:
    """What makes the drafts of `drafting` with static tensors, from the `features` that a `Decoder` keeps."""
    if model.dspark is None:
        return Drafter(model, drafting.cache, features)
    return BlockDrafter(model, model.dspark, drafting.cache, features, drafting.most)


def choose_stepper(model: AnyModel, cache: RowCaches[Any], drafting: Drafting | None) -> Stepper:
    """Captured on accelerators; plain on a CPU, over ranks of unknown collectives, and of DeepSeek-V4.1."""
    if model.device.type == "cpu" or _collectives_are_apart(model):
        return PlainStepper(model, cache, drafting)
    if not isinstance(model, Model) or not isinstance(cache, Cache):
        return PlainStepper(model, cache, drafting)
    return CapturedStepper(model, cache, drafting)


def describe_steps(model: AnyModel) -> str:
    """How the steps of this model run: `captured: CUDAGraph`, or `eager: ` and why; and what is slow about them."""
    if model.device.why_eager is not None:
        return f"eager: {model.device.why_eager}"
    if not isinstance(model, Model):
        return "eager: steps of DeepSeek-V4.1 are not captured"
    if _collectives_are_apart(model):
        return f"eager: no graph is known to hold the collectives of {model.device.dist_backend}"
    if not model.ops.captured:
        return f"eager: {model.ops.name} operators wait for the device"
    slow = sum(block.ffn.experts.format == "fp4" and not block.ffn.experts.arranged for block in model.blocks)
    remark = f"; FP4 experts of {slow} layers by slower kernels (docs/engine-internals.md)" if slow else ""
    sums = ""
    if model.groups.mp > 1:
        why = f": {model.groups.no_exchange}" if model.groups.no_exchange else ""
        by_kernels = model.groups.exchange is not None
        sums = "; small sums over ranks inside kernels" if by_kernels else f"; sums by {model.device.dist_backend}{why}"
    return f"captured: {model.device.graph_class}{sums}{remark}"


def passes_are_captured(model: AnyModel) -> bool:
    """Whether passes of fixed sizes are captured for this model: pieces of prompts, whatever its drafts are."""
    if not isinstance(model, Model) or model.device.why_eager is not None:
        return False
    return model.ops.captured and not _collectives_are_apart(model)


def _collectives_are_apart(model: AnyModel) -> bool:
    return model.groups.mp > 1 and model.device.dist_backend not in CAPTURED_BACKENDS
