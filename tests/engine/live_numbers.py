"""What a row of a cache holds that a later token can read."""

from __future__ import annotations

from torch import Tensor

from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model


def live(cache: Cache, row: int, model: Model) -> list[Tensor]:
    """Every number of a row that a later token can read, by the definitions of window, windows and compressors."""
    length, window = cache.lengths[row], model.config.sliding_window
    kept = []
    for layer, ratio in zip(cache.layers, model.config.compress_ratios, strict=False):
        entries, room = (length // ratio, cache.context // ratio) if ratio else (0, 0)
        ring = layer.kv.shape[1] - room - 1
        slots = [room + p % ring for p in range(max(0, length - window + 1), length)]
        kept += [layer.kv[row, :entries], layer.kv[row, slots]]
        if ratio == 4 and layer.index_k is not None:
            kept.append(layer.index_k[row, :entries])
        for pending in (layer.pending, layer.index_pending):
            if pending is not None:
                begin = max(0, length // ratio * ratio - (ratio if ratio == 4 else 0))
                size = pending.kv.shape[1] - 2
                remembered = [p % size for p in range(begin, length)]
                kept += [pending.kv[row, remembered], pending.score[row, remembered]]
    return kept
