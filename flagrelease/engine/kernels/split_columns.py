"""Even columns, then odd ones, as products with packed FP4 weights take them; with FP8's rounding on the way.

Legend: R rows, G groups of a row, GROUP columns that share one scale.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.codes import power_of_two, power_of_two_exponent
from flagrelease.engine.kernels.interpreter import cast, jit, round_e4m3
from flagrelease.engine.kernels.layout import rows
from flagrelease.engine.kernels.weights import FP8_BLOCK

TILE = 2048  # elements of a program


@jit
def _split_columns_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    R: tl.tensor,
    G: tl.tensor,
    GROUP: tl.constexpr,
    QUANTISE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    part = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r, g = part // G, part % G
    half: tl.constexpr = GROUP // 2
    i = tl.arange(0, half)
    inside = (r < R)[:, None]
    at = x_ptr + (r * x_stride + g * GROUP)[:, None] + 2 * i[None, :]
    even = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
    if QUANTISE:  # see `act_quant`
        amax = tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), axis=1)
        exponent = power_of_two_exponent(tl.maximum(amax, 1e-4) * (1.0 / 448.0))
        inverse, scale = power_of_two(254 - exponent)[:, None], power_of_two(exponent)[:, None]
        even = round_e4m3(tl.minimum(tl.maximum(even * inverse, -448.0), 448.0)) * scale
        odd = round_e4m3(tl.minimum(tl.maximum(odd * inverse, -448.0), 448.0)) * scale
    y = y_ptr + (r * G * GROUP + g * half)[:, None] + i[None, :]
    tl.store(y, cast(even, y_ptr.dtype.element_ty), mask=inside)
    tl.store(y + G * half, cast(odd, y_ptr.dtype.element_ty), mask=inside)


def split_columns(x: Tensor, quantise: bool) -> Tensor:
    """x [R, d] with its even columns in [:, : d/2] and its odd ones in [:, d/2 :]; `quantise`: see act_quant_roundtrip.

    d is a multiple of 128 if it is rounded, else of 32.
    """
    d = x.shape[-1]
    group = FP8_BLOCK if quantise else 32
    if d % group:
        raise ValueError(f"groups of {group} columns do not divide {d}")
    x_rows, y = rows(x), x.new_empty(x.shape)
    R, G = len(x_rows), d // group
    block = TILE // group
    _split_columns_kernel[(triton.cdiv(R * G, block),)](
        x_rows, y, x_rows.stride(0), R, G, GROUP=group, QUANTISE=quantise, BLOCK=block
    )
    return y
