"""Attention over chosen positions, the indexer that chooses them, and the pooling that makes compressed entries."""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.key_rows import plain_index_keys, plain_keys
from flagrelease.engine.kernels.reference.precision import wide

# Elements of gathered keys held at once: 64 MiB of FP32.
_GATHER_ELEMENTS = 1 << 24


def sparse_attention(
    q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float, rows: Tensor | None = None
) -> Tensor:
    """Multi-query attention over the listed positions, with a learned sink in the denominator.

    z_j = scale * (q . kv_j) over the valid j, m = max z,
    o = sum exp(z_j - m) kv_j / (sum exp(z_j - m) + exp(sink - m)).
    The sink is not scaled, has no value and does not enter m. exp(z - m) is rounded to q's dtype in the numerator only,
    as upstream does for its matrix unit. A position listed twice counts twice.

    Args:
        q: [b, s, h, d], any h.
        kv: [b, n, d], key and value in one, or rows of `pack_keys` [b, n, ..] of them; with `rows` any number of
            sequences.
        sink: FP32 [h].
        idx: integers [b, s, t] into n, -1 = none. A query without any valid position gets zeros.
        scale: d^(-1/2) in V4.
        rows: integers [b], which of kv each sequence has; None: they are in order.

    Returns:
        [b, s, h, d] in q's dtype.
    """
    b, s, _, d = q.shape
    kv = kv if rows is None else kv[rows]
    out = torch.empty_like(q)
    chunk = max(1, _GATHER_ELEMENTS // max(1, b * idx.shape[-1] * d))
    for start in range(0, s, chunk):
        part = slice(start, start + chunk)
        out[:, part] = _sparse_attention(q[:, part], kv, sink, idx[:, part].long(), scale)
    return out


def _sparse_attention(q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float) -> Tensor:
    valid = (idx >= 0)[:, :, None]  # [b, s, 1, t]
    batch = torch.arange(len(kv), device=kv.device)[:, None, None]
    keys = wide(plain_keys(kv[batch, idx.clamp(min=0)], q.shape[-1]))  # [b, s, t, d]
    z = (wide(q) @ keys.mT * scale).masked_fill(~valid, -torch.inf)  # [b, s, h, t]
    m = z.amax(-1, keepdim=True)
    m = m.masked_fill(m == -torch.inf, 0)  # no valid position: every exp(z - m) is 0, and so is the result
    p = torch.exp(z - m)
    denominator = p.sum(-1, keepdim=True) + torch.exp(wide(sink)[:, None] - m)
    return (wide(p.to(q.dtype)) @ keys / denominator).to(q.dtype)


def indexer_scores(q: Tensor, k: Tensor, weights: Tensor, rows: Tensor | None = None) -> Tensor:
    """sum_h relu(q_h . k_w) * weight_h, in FP32; partial over the local heads under tensor parallelism.

    Args:
        q: [b, s, h, d].
        k: [b, n, d], compressed index keys, or rows of `pack_index_keys` [b, n, ..] of them; with `rows` any number of
            sequences.
        weights: [b, s, h].
        rows: integers [b], which of k each sequence has; None: they are in order.

    Returns:
        [b, s, n].
    """
    k = plain_index_keys(k if rows is None else k[rows], q.shape[-1])
    scores = wide(q).new_zeros(*q.shape[:2], k.shape[1])
    for head in range(q.shape[2]):  # the [b, s, h, n] intermediate would not fit at long context
        scores += (wide(q[:, :, head]) @ wide(k).mT).relu() * wide(weights[:, :, head, None])
    return scores


def topk_visible(scores: Tensor, visible: Tensor, k: int, offset: int = 0) -> Tensor:
    """The k best of the first `visible` entries of each row.

    Args:
        scores: [b, s, n].
        visible: integers [b, s], entries a query may see (a prefix).
        k: entries wanted.
        offset: added to every index (where the compressed entries start in the attention's kv).

    Returns:
        int32 [b, s, min(k, n)]: indices ascending, then -1; of equal scores the lower indices are taken.
    """
    n = scores.shape[-1]
    hidden = torch.arange(n, device=scores.device) >= visible[..., None]
    order = scores.masked_fill(hidden, -torch.inf).sort(stable=True, descending=True).indices[..., :k]
    best = order.masked_fill(hidden.gather(-1, order), n).sort(-1).values  # hidden ones are named n: they go last
    return torch.where(best == n, -1, best + offset).int()


def compress_pool(kv: Tensor, score: Tensor) -> Tensor:
    """Softmax of `score` over the slots of a window, channel by channel, and the so weighted sum of `kv`.

    Ratio 128 has 128 slots; ratio 4 has 8: the previous window's channels [0, d) and the current one's [d, 2d). Slots
    that do not exist (the window before the first) have score -inf.

    Args:
        kv: [.., slots, d].
        score: [.., slots, d], with ape added.

    Returns:
        [.., d] in FP32 (float64 for float64).
    """
    return (wide(kv) * wide(score).softmax(-2)).sum(-2)


def compress_windows(
    kv: Tensor, score: Tensor, ape: Tensor, pending_kv: Tensor, pending_score: Tensor, rows: Tensor | None,
    source: Tensor, pending_slot: Tensor, positions: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """A compressor's step for many tokens of a row: pool the windows that they complete, then remember them.

    Args:
        kv: FP32 [b, s, c]; c is twice the entries' width d where windows overlap.
        score: like kv, without ape.
        ape: FP32 [ratio, c].
        pending_kv: FP32 [.., N + 2, c], the tokens before; written to.
        pending_score: like pending_kv.
        rows: integers [b], which of pending_kv each row has; None: they are in order.
        source: int64 [b, n, slots], the tokens of each window, in the sequence of N + 2 pending slots and s new tokens.
            A window with none but slot N, which is empty, has a result without meaning.
        pending_slot: int64 [b, s], where a token is remembered, -1: nowhere.
        positions: int64 [b, s], of the tokens.
        dtype: of the result.

    Returns:
        [b, n, d], see `compress_pool`.
    """
    row = torch.arange(len(kv), device=kv.device) if rows is None else rows
    ratio, slots, width = len(ape), source.shape[2], pending_kv.shape[1]
    phase = torch.arange(slots, device=kv.device) % ratio
    at = torch.arange(len(kv), device=kv.device)[:, None, None], source
    window_kv = torch.cat((pending_kv[row], kv), 1)[at]  # [b, n, slots, c]
    window_score = torch.cat((pending_score[row], score), 1)[at]
    window_score = window_score + torch.where((source >= width)[..., None], ape[phase], 0)
    if slots > ratio:  # the previous window's first channels, the current one's second
        window_kv, window_score = (
            torch.cat((x[..., :ratio, : x.shape[-1] // 2], x[..., ratio:, x.shape[-1] // 2 :]), -2)
            for x in (window_kv, window_score)
        )
    b, s = torch.where(pending_slot >= 0)
    slot = pending_slot[b, s]
    pending_kv[row[b], slot] = kv[b, s]
    pending_score[row[b], slot] = score[b, s] + ape[positions[b, s] % ratio]
    return compress_pool(window_kv, window_score).to(dtype)
