"""Products of decoding in parts, and what reads them: the parts added up, rounded, and quantised if asked for.

A product may come in parts [S, B, N] in FP32 that are still to be added up: how many is the implementation's choice.
Their sum is rounded to the compute dtype first wherever the plain forward pass rounds the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.linear import fp8_linear, linear
from flagrelease.engine.kernels.reference.precision import wide
from flagrelease.engine.kernels.reference.quantisation import act_quant, dequantise
from flagrelease.engine.kernels.reference.rows import swiglu
from flagrelease.engine.kernels.weights import FP8_BLOCK

Quantised = tuple[Tensor, Tensor | None, Tensor | None]  # values, and their FP8 codes and scales if asked for


def linear_parts(x: Tensor, w: Tensor) -> Tensor:
    """`linear` in FP32 parts [S, B, N]: x [B, K], w [N, K]."""
    return linear(x, w, torch.float32)[None]


def fp8_linear_parts(xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor) -> Tensor:
    """`fp8_linear` in FP32 parts [S, B, N]: xq [B, K], w [N, K]."""
    return fp8_linear(xq, xs, w, ws, torch.float32)[None]


def fp8_grouped_linear(x: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype) -> Tensor:
    """x [.., G, K], not rounded, times E4M3 weights [G, N, K] with scales [G, N/128, K/128], rounded up: [.., G, N]."""
    return torch.einsum("...gk,gnk->...gn", wide(x), wide(dequantise(w, ws))).to(out_dtype)


def fp8_grouped_linear_parts(x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor) -> Tensor:
    """`fp8_grouped_linear` of x [B, G, K] in FP32 parts [S, B, G * N]; FP16 x has scales [B, G, K/128]."""
    if xs is not None:
        x = wide(x) * xs.repeat_interleave(FP8_BLOCK, -1)
    return fp8_grouped_linear(x, w, ws, torch.float32).flatten(1)[None]


def round_parts(parts: Tensor, dtype: torch.dtype, quantise: bool) -> Quantised:
    """FP32 parts [S, B, N] added up and rounded to `dtype`; then (`quantise`) `act_quant`."""
    return quantised(whole(parts, dtype), quantise)


def swiglu_parts(parts: Tensor, limit: float, dtype: torch.dtype, quantise: bool) -> Quantised:
    """`swiglu` of FP32 parts [S, B, 2 MI] (gate, up), each rounded to `dtype`; then (`quantise`) `act_quant`."""
    gate, up = whole(parts, dtype).chunk(2, -1)
    return quantised(swiglu(gate, up, limit), quantise)


def whole(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Parts [S, ..] of any float dtype added in FP32 and rounded once."""
    return wide(parts).sum(0).to(dtype)


def quantised(y: Tensor, quantise: bool) -> Quantised:
    """y, and its `act_quant` if `quantise`."""
    return (y, *act_quant(y)) if quantise else (y, None, None)
