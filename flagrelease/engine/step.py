"""One step of the model over a ragged batch: which tokens, at which positions, reading and writing which cache slots.

Prefill, a later chunk of a prompt and decoding are the same step with other numbers. Everything here is integer work on
the host, done once a step and shared by all layers; the layers only gather and scatter by it.

Legend: B rows, S tokens of the longest row, W window, R ring slots, C compressed entries a row can hold, n windows that
the step completes in any row, P pending slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.cache import OVERLAP_RATIO, pending_slots, ring_slots
from flagrelease.model.config import ModelConfig

_BIN = -1  # the last slot of every buffer


@dataclass(frozen=True, slots=True)
class Windows:
    """The compressed side of a step for layers of one ratio.

    Attributes:
        visible: [B, S], complete windows that each query may attend to.
        entries: the largest of them: entries of the cache that matter.
        phase: [B, S], position mod ratio, the row of `ape`.
        pending_slot: [B, S], where each token is remembered.
        source: [B, n, slots], tokens of each completed window in the sequence (pending slots, then the step's tokens).
        entry_slot: [B, n], where the window's entry goes in the cache.
        entry_position: [B, n], the window's first token, which is the entry's position for RoPE.
    """

    visible: Tensor
    entries: int
    phase: Tensor
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
        row: [B, 1], 0 to B - 1, to index caches together with slots.
        last: [B], index in S of each row's last token.
        kv_slot: by ratio, [B, S]: where each token's key goes.
        visible_slots: by ratio, int32 [B, S, ..]: the slots of the keys each query attends to, -1 = none. For ratio 4
            it lists the window only: the indexer chooses the rest.
        windows: by ratio > 0.
    """

    tokens: Tensor
    positions: Tensor
    row: Tensor
    last: Tensor
    kv_slot: dict[int, Tensor]
    visible_slots: dict[int, Tensor]
    windows: dict[int, Windows]


def plan_step(
    config: ModelConfig,
    tokens: Sequence[Sequence[int]],
    starts: Sequence[int],
    context: int,
    chunk: int,
    device: torch.device,
) -> Step:
    """The step that appends `tokens[b]` to row b, which has seen `starts[b]` tokens. At least one row appends some."""
    B, S = len(tokens), max(map(len, tokens))
    start = torch.tensor(starts)[:, None]
    length = torch.tensor([len(row) for row in tokens])[:, None]
    padded = torch.tensor([[*row, *[0] * (S - len(row))] for row in tokens])
    place = torch.arange(S)[None]
    positions, real = start + place, place < length
    ring, slot = ring_slots(config.sliding_window, chunk), {}
    window = _window_slots(config.sliding_window, ring, positions, real)
    visible_slots, windows = {}, {}
    for ratio in sorted(set(config.compress_ratios)):
        C = context // ratio if ratio else 0
        slot[ratio] = torch.where(real, C + positions % ring, _BIN).to(device)
        listed = torch.where(window < 0, -1, window + C)
        if ratio:
            windows[ratio] = _plan_windows(ratio, start, length, positions, real, C, device)
        if ratio and ratio != OVERLAP_RATIO:
            listed = torch.cat((_prefix(windows[ratio], positions, real, ratio), listed), -1)
        visible_slots[ratio] = listed.int().to(device)
    return Step(
        tokens=padded.to(device),
        positions=(positions * real).to(device),  # padding reads position 0: the tables end at the context
        row=torch.arange(B, device=device)[:, None],
        last=(length[:, 0] - 1).clamp(min=0).to(device),
        kv_slot=slot,
        visible_slots=visible_slots,
        windows=windows,
    )


def _window_slots(window: int, ring: int, positions: Tensor, real: Tensor) -> Tensor:
    """Ring slots [B, S, ..] of the positions (p - window, p] of each query, -1 where there is none."""
    columns = min(window, int(positions.max()) + 1)
    keys = positions[..., None] - torch.arange(columns - 1, -1, -1)
    return torch.where((keys >= 0) & real[..., None], keys % ring, -1)


def _prefix(windows: Windows, positions: Tensor, real: Tensor, ratio: int) -> Tensor:
    """All visible entries [B, S, entries] by slot, -1 where one is not visible."""
    entry = torch.arange(windows.entries)
    seen = (entry < ((positions + 1) // ratio)[..., None]) & real[..., None]
    return torch.where(seen, entry, -1)


def _plan_windows(
    ratio: int, start: Tensor, length: Tensor, positions: Tensor, real: Tensor, capacity: int, device: torch.device
) -> Windows:
    P = pending_slots(ratio)
    end = start + length
    first, past = start // ratio, end // ratio
    window = first + torch.arange(int((past - first).max()))  # [B, n]
    complete = window < past
    slots = torch.arange(-ratio if ratio == OVERLAP_RATIO else 0, ratio)
    token = (window * ratio)[..., None] + slots  # [B, n, slots], positions
    source = torch.where(token >= start[..., None], P + 2 + token - start[..., None], token % P)
    source = torch.where(token < 0, P, source)
    source = torch.where(complete[..., None], source, P)
    remembered = real & (positions >= end - P)
    visible = torch.where(real, (positions + 1) // ratio, 0)
    return Windows(
        visible=visible.to(device),
        entries=min(int(visible.max()), capacity),
        phase=(positions % ratio).to(device),
        pending_slot=torch.where(remembered, positions % P, _BIN).to(device),
        source=source.to(device),
        entry_slot=torch.where(complete, window, _BIN).to(device),
        entry_position=(torch.where(complete, window, 0) * ratio).to(device),
    )
