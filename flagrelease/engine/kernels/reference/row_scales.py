"""The formats that serving stacks load: INT8 and FP8 with a scale for each row, and MXFP8.

Inputs are rounded as the stacks round them: a scale for each token with INT8 and FP8, one for 32 columns with MXFP8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.e4m3 import numbers, to_e4m3
from flagrelease.engine.kernels.reference.linear import linear
from flagrelease.engine.kernels.reference.precision import wide_dtype
from flagrelease.engine.kernels.reference.quantisation import E4M3_MAX, dequantise
from flagrelease.engine.kernels.weights import MX_BLOCK, check_mx_weight, check_row_weight

INT8_MAX = 127.0
# vLLM's least scale of a token in FP8 (csrc/quantization: `min_scaling_factor` in dynamic_per_token_scaled_fp8_quant).
TOKEN_SCALE_FLOOR = 1.0 / (448.0 * 512.0)


def token_quant(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise each row to INT8 or E4M3 with a scale of its own.

    The scale is s = max |x| / 127, or / 448 and at least `TOKEN_SCALE_FLOOR`; a code is x / s, both divisions FP32,
    rounded to the nearest, ties to even, and clipped to +-127 or +-448. A row of zeros has codes 0.

    Args:
        x: [.., K].
        dtype: int8 or float8_e4m3fn.

    Returns:
        Codes [.., K] and FP32 scales [..].
    """
    values = x.float()
    amax = values.abs().amax(-1)
    # A tensor on both sides: by a number, torch multiplies with the reciprocal on CUDA.
    scale = amax / torch.full_like(amax, INT8_MAX if dtype == torch.int8 else E4M3_MAX)
    if dtype != torch.int8:
        scale = scale.clamp(min=TOKEN_SCALE_FLOOR)
    steps = values / scale.where(scale > 0, 1.0)[..., None]
    if dtype == torch.int8:
        return steps.round().clamp(-INT8_MAX, INT8_MAX).to(dtype), scale
    return to_e4m3(steps.clamp(-E4M3_MAX, E4M3_MAX)), scale


def row_linear(
    xq: Tensor, xs: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16, out: Tensor | None = None
) -> Tensor:
    """out[m, n] = (sum_k xq[m, k] w[n, k]) xs[m] ws[n]: the sum of INT8 codes is INT32, that of E4M3 codes FP32.

    The sum is made FP32 and multiplied with xs, then with ws, then rounded to `out_dtype`.

    Args:
        xq: int8 or E4M3 [.., K], as `w`.
        xs: FP32 [..].
        w: [N, K].
        ws: FP32 [N].
        out_dtype: of the result [.., N].
        out: see `linear`.
    """
    check_row_weight(w, ws)
    check_tokens(xq, xs, w)
    wide = wide_dtype(out_dtype)
    # INT32 sums fit into float64 exactly, and there is a fast product of it everywhere.
    exact = torch.float64 if w.dtype == torch.int8 else wide
    total = (numbers(xq, exact) @ numbers(w, exact).mT).to(wide)
    y = (total * xs.to(wide)[..., None] * ws.to(wide)).to(out_dtype)
    return y if out is None else out.copy_(y)


def check_tokens(xq: Tensor, xs: Tensor, w: Tensor) -> None:
    """Refuse activations that are not codes as the weight's with one scale for each row."""
    if xq.dtype != w.dtype or xq.shape[-1] != w.shape[-1] or xs.dtype != torch.float32 or xs.shape != xq.shape[:-1]:
        raise ValueError(
            f"activations {xq.dtype} {tuple(xq.shape)} with scales {xs.dtype} {tuple(xs.shape)} do not fit a weight "
            f"{w.dtype} {tuple(w.shape)} with a scale for each row"
        )


def mx_act_quant_roundtrip(x: Tensor, out: Tensor | None = None) -> Tensor:
    """`x` quantised to MXFP8 and dequantised again, in x's dtype (exact in BF16).

    As OCP MX says (Microscaling Formats v1.0, section 6.3): 32 columns share 2^(floor(log2(max |x|)) - 8), and what is
    beyond 448 of it becomes 448. The least scale here is 2^-126.
    """
    if x.shape[-1] % MX_BLOCK:
        raise ValueError(f"groups of {MX_BLOCK} columns do not divide {x.shape[-1]}")
    groups = x.float().view(*x.shape[:-1], x.shape[-1] // MX_BLOCK, MX_BLOCK)
    exponent = ((groups.abs().amax(-1).view(torch.int32) >> 23) - 8).clamp(min=1)
    scale = (exponent << 23).view(torch.float32)[..., None]
    codes = to_e4m3((groups / scale).clamp(-E4M3_MAX, E4M3_MAX))
    y = (numbers(codes) * scale).flatten(-2).to(x.dtype)
    return y if out is None else out.copy_(y)


def mx_linear(
    x: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16, out: Tensor | None = None
) -> Tensor:
    """x [.., K], which `mx_act_quant_roundtrip` rounded, times an MXFP8 weight: E4M3 [N, K], E8M0 bytes [N, K/32]."""
    check_mx_weight(w, ws)
    return linear(x, dequantise(w, ws), out_dtype, out)
