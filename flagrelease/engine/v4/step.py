"""One step of the model over a ragged batch: which tokens, at which positions, reading and writing which cache slots.

Prefill, a later chunk of a prompt and decoding are the same step with other numbers. All of it is integer work, done
once a step and shared by all layers; the layers only gather and scatter by it. Sizes come from the host's numbers, and
what has such a size is made on the device: of 8,192 tokens it is tens of MB, and nothing waits for it.

Legend: B rows, S tokens of the longest row, W window, R ring slots, C compressed entries a row can hold, n windows that
the step completes in any row, P pending slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.v4.cache import OVERLAP_RATIO, pending_slots, ring_slots
from flagrelease.model.v4.config import ModelConfig

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
    ends = [begun + len(row) for begun, row in zip(starts, tokens, strict=True)]
    padded = torch.tensor([[*row, *[0] * (S - len(row))] for row in tokens], dtype=torch.int64, device=device)
    start, end = (torch.tensor(each, dtype=torch.int64, device=device)[:, None] for each in (starts, ends))
    place = torch.arange(S, device=device)[None]
    positions, real = start + place, place < end - start
    ring, slot = ring_slots(config.sliding_window, chunk), {}
    window = _window_slots(min(config.sliding_window, max(starts) + S), ring, positions, real)
    visible_slots, windows = {}, {}
    for ratio in sorted(set(config.compress_ratios)):
        C = context // ratio if ratio else 0
        slot[ratio] = torch.where(real, C + positions % ring, _BIN)
        listed = torch.where(window < 0, -1, window + C)
        if ratio:
            completed = max(past // ratio - begun // ratio for begun, past in zip(starts, ends, strict=True))
            most = max(past // ratio for past, row in zip(ends, tokens, strict=True) if row)
            windows[ratio] = _plan_windows(ratio, completed, min(most, C), start, end, positions, real)
        if ratio and ratio != OVERLAP_RATIO:
            listed = torch.cat((_prefix(windows[ratio], positions, real, ratio), listed), -1)
        visible_slots[ratio] = listed.int()
    return Step(
        tokens=padded,
        positions=positions * real,  # padding reads position 0: the tables end at the context
        row=torch.arange(B, device=device)[:, None],
        last=(end - start - 1)[:, 0].clamp(min=0),
        kv_slot=slot,
        visible_slots=visible_slots,
        windows=windows,
    )


def _window_slots(columns: int, ring: int, positions: Tensor, real: Tensor) -> Tensor:
    """Ring slots [B, S, columns] of the positions (p - columns, p] of each query, -1 where there is none."""
    keys = positions[..., None] - torch.arange(columns - 1, -1, -1, device=positions.device)
    return torch.where((keys >= 0) & real[..., None], keys % ring, -1)


def _prefix(windows: Windows, positions: Tensor, real: Tensor, ratio: int) -> Tensor:
    """All visible entries [B, S, entries] by slot, -1 where one is not visible."""
    entry = torch.arange(windows.entries, device=positions.device)
    seen = (entry < ((positions + 1) // ratio)[..., None]) & real[..., None]
    return torch.where(seen, entry, -1)


def _plan_windows(
    ratio: int, completed: int, entries: int, start: Tensor, end: Tensor, positions: Tensor, real: Tensor
) -> Windows:
    """`completed`: windows that a row completes at most; `entries`: see `Windows`."""
    P, device = pending_slots(ratio), positions.device
    window = start // ratio + torch.arange(completed, device=device)  # [B, n]
    complete = window < end // ratio
    slots = torch.arange(-ratio if ratio == OVERLAP_RATIO else 0, ratio, device=device)
    token = (window * ratio)[..., None] + slots  # [B, n, slots], positions
    source = torch.where(token >= start[..., None], P + 2 + token - start[..., None], token % P)
    source = torch.where(token < 0, P, source)
    remembered = real & (positions >= end - P)
    return Windows(
        visible=torch.where(real, (positions + 1) // ratio, 0),
        entries=entries,
        phase=positions % ratio,
        pending_slot=torch.where(remembered, positions % P, _BIN),
        source=torch.where(complete[..., None], source, P),
        entry_slot=torch.where(complete, window, _BIN),
        entry_position=torch.where(complete, window, 0) * ratio,
    )
