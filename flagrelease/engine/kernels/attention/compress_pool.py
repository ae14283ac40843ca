"""Pooling of a window into one compressed entry, in Triton. Legend: W windows, S slots of each, D channels."""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2


@early_kernel
def _compress_pool_kernel(
    kv_ptr: tl.tensor,
    score_ptr: tl.tensor,
    y_ptr: tl.tensor,
    S: tl.tensor,
    D: tl.tensor,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    wait_for_results()
    w = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, BLOCK_S)[:, None]
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (s < S) & (d < D)[None, :]
    at = (w * S + s) * D + d[None, :]
    kv = tl.load(kv_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # Padding channels get 0 rather than -inf: a column of -inf alone would be NaN.
    score = tl.load(score_ptr + at, mask=inside, other=0.0).to(tl.float32)
    score = tl.where(s < S, score, float("-inf"))
    p = tl.exp(score - tl.max(score, axis=0)[None, :])
    tl.store(y_ptr + w * D + d, tl.sum(p * kv, axis=0) / tl.sum(p, axis=0), mask=d < D)


def compress_pool(kv: Tensor, score: Tensor) -> Tensor:
    """See `reference.compress_pool`."""
    if kv.shape != score.shape:
        raise ValueError(f"kv {tuple(kv.shape)} and score {tuple(score.shape)} differ")
    *lead, S, D = kv.shape
    kv, score = kv.contiguous(), score.contiguous()
    y = kv.new_empty(*lead, D).float()
    block_s = next_power_of_2(S)
    block_d = min(next_power_of_2(D), max(16, 8192 // block_s))
    _compress_pool_kernel[(y.numel() // D, ceil_div(D, block_d))](kv, score, y, S, D, BLOCK_S=block_s, BLOCK_D=block_d)
    return y
