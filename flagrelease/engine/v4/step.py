"""One step of the model over a ragged batch: which tokens, at which positions, reading and writing which cache slots.

Prefill, a later chunk of a prompt and decoding are the same step with other numbers. All of it is integer work, done
once a step and shared by all layers; the layers only gather and scatter by it. Sizes come from the host's numbers, and
what has such a size is made on the device: of 8,192 tokens it is tens of MB, and nothing waits for it.

Legend: B rows, S tokens of the longest row, W window, R ring slots, C compressed entries a row can hold, n windows that
the step completes in any row, N pending slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.transfer import send
from flagrelease.engine.v4.cache import OVERLAP_RATIO, pending_slots, ring_slots
from flagrelease.model.config import FamilyConfig
from flagrelease.model.v4.config import ModelConfig

BIN = -1  # the last slot of every buffer


@dataclass(frozen=True, slots=True)
class Windows:
    """The compressed side of a step for layers of one ratio.

    Attributes:
        visible: [B, S], complete windows that each query may attend to.
        entries: the largest of them: entries of the cache that matter.
        pending_slot: [B, S], where each token is remembered.
        source: [B, n, slots], tokens of each completed window in the sequence (pending slots, then the step's tokens).
        entry_slot: [B, n], where the window's entry goes in the cache.
        entry_position: [B, n], the window's first token, which is the entry's position for RoPE.
    """

    visible: Tensor
    entries: int
    pending_slot: Tensor
    source: Tensor
    entry_slot: Tensor
    entry_position: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """The numbers of one step; tensors are int64 unless said, on the model's device.

    Attributes:
        tokens: [B, S], padding is token 0.
        positions: [B, S].
        real: bool [B, S], which of them are tokens; None: there is no padding.
        row: [B, 1], 0 to B - 1, to index the step's own tensors.
        rows: [B], which rows of the caches these are; None: the caches have no others.
        last: [B], index in S of each row's last token.
        kv_slot: by ratio, [B, S]: where each token's key goes.
        visible_slots: by ratio, int32 [B, S, ..]: the slots of the keys each query attends to, -1 = none. For ratio 4
            it lists the window only: the indexer chooses the rest.
        windows: by ratio > 0.
    """

    tokens: Tensor
    positions: Tensor
    real: Tensor | None
    row: Tensor
    rows: Tensor | None
    last: Tensor
    kv_slot: dict[int, Tensor]
    visible_slots: dict[int, Tensor]
    windows: dict[int, Windows]

    @property
    def cache_row(self) -> Tensor:
        """[B, 1], to index caches together with slots."""
        return self.row if self.rows is None else self.rows[:, None]


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a step's tensors are, known to the host. Where a row needs less, the rest is masked.

    Attributes:
        window: keys of the sliding window that a query lists.
        completed: by ratio > 0, windows that a row completes at most.
        entries: by ratio > 0, compressed entries that a query sees at most.
    """

    window: int
    completed: dict[int, int]
    entries: dict[int, int]

    @classmethod
    def of(cls, config: FamilyConfig, starts: Sequence[int], ends: Sequence[int], context: int) -> Extent:
        """Exactly what rows need that have seen `starts` tokens and will have seen `ends`."""
        grown = [(begun, past) for begun, past in zip(starts, ends, strict=True) if past > begun]
        longest = max(starts) + max(past - begun for begun, past in grown)
        ratios = _ratios(config)
        return cls(
            min(config.sliding_window, longest),
            {ratio: max(past // ratio - begun // ratio for begun, past in grown) for ratio in ratios},
            {ratio: min(max(past // ratio for _, past in grown), context // ratio) for ratio in ratios},
        )

    @classmethod
    def covering(cls, config: ModelConfig, tokens: int, reach: int, context: int) -> Extent:
        """Enough for any `tokens` of a row whose positions are all below `reach`."""
        ratios = _ratios(config)
        return cls(
            min(config.sliding_window, reach),
            {ratio: -(-tokens // ratio) for ratio in ratios},
            {ratio: min(reach, context) // ratio for ratio in ratios},
        )


def _ratios(config: FamilyConfig) -> list[int]:
    return sorted(set(config.compress_ratios) - {0})


def plan_step(
    config: ModelConfig,
    tokens: Sequence[Sequence[int]],
    starts: Sequence[int],
    context: int,
    chunk: int,
    device: torch.device,
    drafts: int = 0,
) -> Step:
    """The step that appends `tokens[b]` to row b, which has seen `starts[b]` tokens. At least one row appends some."""
    counts = [len(row) for row in tokens]
    ends = [begun + count for begun, count in zip(starts, counts, strict=True)]
    padded = [[*row, *[0] * (max(counts) - len(row))] for row in tokens]
    ids, start, end = (send(torch.tensor(each, dtype=torch.int64), device) for each in (padded, starts, ends))
    extent, ragged = Extent.of(config, starts, ends, context), min(counts) < max(counts)
    return lay_out(config, ids, start, end, None, extent, context, chunk, drafts, ragged=ragged)


def lay_out(
    config: ModelConfig, tokens: Tensor, start: Tensor, end: Tensor, rows: Tensor | None, extent: Extent,
    context: int, chunk: int, drafts: int = 0, *, ragged: bool,
) -> Step:  # fmt: skip
    """The step that lets rows grow from `start` to `end` tokens, both [B], by the first of `tokens` [B, S].

    All numbers are computed where these tensors are, and the shapes follow from `extent` and [B, S] alone.

    Args:
        config: of the model.
        tokens: padded with token 0.
        start: tokens that each row has seen.
        end: tokens that it will have seen.
        rows: which rows of the caches these are, [B]; None: the caches have no others.
        extent: at least what the rows need.
        context: tokens that a row of the caches has room for.
        chunk: tokens that a step appends to a row at most.
        drafts: those of them that may be taken back.
        ragged: whether there may be padding.
    """
    (B, S), device = tokens.shape, tokens.device
    start, end = start[:, None], end[:, None]
    place = torch.arange(S, device=device)[None]
    positions, real = start + place, place < end - start
    ring, slot = ring_slots(config.sliding_window, chunk), {}
    window = window_slots(extent.window, ring, positions, real)
    visible_slots, windows = {}, {}
    for ratio in sorted(set(config.compress_ratios)):
        C = context // ratio if ratio else 0
        slot[ratio] = torch.where(real, C + positions % ring, BIN)
        listed = torch.where(window < 0, -1, window + C)
        if ratio:
            windows[ratio] = plan_windows(
                ratio, extent.completed[ratio], extent.entries[ratio], drafts, start, end, positions, real
            )
        if ratio and ratio != OVERLAP_RATIO:
            listed = torch.cat((_prefix(windows[ratio], positions, real, ratio), listed), -1)
        visible_slots[ratio] = listed.int()
    return Step(
        tokens=tokens,
        positions=positions * real,  # padding reads position 0: the tables end at the context
        real=real if ragged else None,
        row=torch.arange(B, device=device)[:, None],
        rows=rows,
        last=(end - start - 1)[:, 0].clamp(min=0),
        kv_slot=slot,
        visible_slots=visible_slots,
        windows=windows,
    )


def window_slots(columns: int, ring: int, positions: Tensor, real: Tensor) -> Tensor:
    """Ring slots [B, S, columns] of the positions (p - columns, p] of each query, -1 where there is none."""
    keys = positions[..., None] - torch.arange(columns - 1, -1, -1, device=positions.device)
    return torch.where((keys >= 0) & real[..., None], keys % ring, -1)


def _prefix(windows: Windows, positions: Tensor, real: Tensor, ratio: int) -> Tensor:
    """All visible entries [B, S, entries] by slot, -1 where one is not visible."""
    entry = torch.arange(windows.entries, device=positions.device)
    seen = (entry < ((positions + 1) // ratio)[..., None]) & real[..., None]
    return torch.where(seen, entry, -1)


def plan_windows(
    ratio: int, completed: int, entries: int, drafts: int, start: Tensor, end: Tensor, positions: Tensor, real: Tensor
) -> Windows:
    """`completed`: windows that a row completes at most; `entries`: see `Windows`; `drafts`: see `Cache`."""
    N, device = pending_slots(ratio) + drafts, positions.device
    window = start // ratio + torch.arange(completed, device=device)  # [B, n]
    complete = window < end // ratio
    slots = torch.arange(-ratio if ratio == OVERLAP_RATIO else 0, ratio, device=device)
    token = (window * ratio)[..., None] + slots  # [B, n, slots], positions
    source = torch.where(token >= start[..., None], N + 2 + token - start[..., None], token % N)
    source = torch.where(token < 0, N, source)
    remembered = real & (positions >= end - N)
    return Windows(
        visible=torch.where(real, (positions + 1) // ratio, 0),
        entries=entries,
        pending_slot=torch.where(remembered, positions % N, BIN),
        source=torch.where(complete[..., None], source, N),
        entry_slot=torch.where(complete, window, BIN),
        entry_position=torch.where(complete, window, 0) * ratio,
    )
