"""Matrix products of activations with stored weights, y = x W^T.

Products are accumulated in FP32 and rounded once to `out_dtype` (float64 throughout if that is float64). Every scale is
applied before the sum here and after each block of it in upstream's kernels: with power-of-two scales the products are
the same numbers, so only the order of the FP32 additions differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.layout import ceil_div
from flagrelease.engine.kernels.reference.e4m3 import numbers
from flagrelease.engine.kernels.reference.precision import wide_dtype
from flagrelease.engine.kernels.reference.quantisation import dequantise
from flagrelease.engine.kernels.weights import FP8_BLOCK, check_fp4_weight, check_fp8_weight


def linear(x: Tensor, w: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """x [.., K] times w [N, K] transposed -> [.., N] in `out_dtype`; BF16, FP32 or float64 operands.

    `out` is where to write, of the result's shape and dtype; its columns are contiguous.
    """
    wide = wide_dtype(out_dtype)
    y = (x.to(wide) @ w.to(wide).mT).to(out_dtype)
    return y if out is None else out.copy_(y)


def grouped_linear(x: Tensor, w: Tensor, out_dtype: torch.dtype) -> Tensor:
    """x [.., G, K] times w [G, N, K] transposed, group by group -> [.., G, N]: the o-groups' wo_a."""
    wide = wide_dtype(out_dtype)
    return torch.einsum("...gk,gnk->...gn", x.to(wide), w.to(wide)).to(out_dtype)


def fp8_linear(
    xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """FP8 weight: out[m, n] = sum_k xq[m, k] xs[m, k/128] w[n, k] ws[n/128, k/128].

    Args:
        xq: E4M3 [.., K]; or, with xs None, unquantised activations of any float dtype.
        xs: FP32 [.., ceil(K/128)] from `act_quant`, or None.
        w: E4M3 [N, K].
        ws: FP32 or E8M0 [ceil(N/128), ceil(K/128)].
        out_dtype: of the result [.., N].
        out: see `linear`.
    """
    check_fp8_weight(w, ws)
    return linear(_activation(xq, xs, w.shape[-1], out_dtype), dequantise(w, ws), out_dtype, out)


def fp4_linear(xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """FP4 weight: out[m, n] = sum_k xq[m, k] xs[m, k/128] e2m1(w)[n, k] ws[n, k/32].

    Args:
        xq: E4M3 [.., K]; or, with xs None, unquantised activations of any float dtype.
        xs: FP32 [.., ceil(K/128)] from `act_quant`, or None.
        w: int8 or uint8 [N, K/2], the even column in the low nibble.
        ws: E8M0 or FP32 [N, K/32].
        out_dtype: of the result [.., N].
    """
    check_fp4_weight(w, ws)
    return linear(_activation(xq, xs, 2 * w.shape[-1], out_dtype), dequantise(w, ws), out_dtype)


def _activation(xq: Tensor, xs: Tensor | None, columns: int, out_dtype: torch.dtype) -> Tensor:
    """The activation's values, scales applied, in the accumulation precision."""
    if xq.shape[-1] != columns:
        raise ValueError(f"the activation has {xq.shape[-1]} columns, the weight {columns}")
    x = numbers(xq, wide_dtype(out_dtype))
    if (xs is None) == (xq.dtype == torch.float8_e4m3fn):
        raise ValueError(f"activations of {xq.dtype} come {'with' if xs is None else 'without'} scales")
    if xs is None:
        return x
    if tuple(xs.shape) != (*xq.shape[:-1], ceil_div(columns, FP8_BLOCK)):
        raise ValueError(f"activation scales have shape {tuple(xs.shape)} for codes {tuple(xq.shape)}")
    return x * xs.repeat_interleave(FP8_BLOCK, -1)[..., :columns]
