"""Columns sorted by their place in packed FP4 words, as products with such weights take them.

FP8's rounding may happen on the way. Legend: R rows, G groups of a row, GROUP columns that share one scale.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.codes import power_of_two, power_of_two_exponent
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, round_e4m3
from flagrelease.engine.kernels.layout import rows
from flagrelease.engine.kernels.weights import FP8_BLOCK

TILE = 2048  # elements of a program


@early_kernel
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
    wait_for_results()
    part = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r, g = part // G, part % G
    word: tl.constexpr = GROUP // 8
    d = tl.arange(0, GROUP)
    kind, place = d // word, d % word
    source = 16 * (place // 2) + 8 * (kind // 4) + 4 * (place % 2) + kind % 4
    inside = (r < R)[:, None]
    x = tl.load(x_ptr + (r * x_stride + g * GROUP)[:, None] + source[None, :], mask=inside, other=0.0).to(tl.float32)
    if QUANTISE:  # see `act_quant`
        exponent = power_of_two_exponent(tl.maximum(tl.max(tl.abs(x), axis=1), 1e-4) * (1.0 / 448.0))
        x = tl.minimum(tl.maximum(x * power_of_two(254 - exponent)[:, None], -448.0), 448.0)
        x = round_e4m3(x) * power_of_two(exponent)[:, None]
    at = (r * G * GROUP + g * word)[:, None] + (kind * G * word + place)[None, :]
    tl.store(y_ptr + at, cast(x, y_ptr.dtype.element_ty), mask=inside)


def split_columns(x: Tensor, quantise: bool) -> Tensor:
    """x [R, d] in the order in which `fp4_weights` gives the columns of weights; `quantise`: see act_quant_roundtrip.

    Tensor j's columns, j = 0..7, are those from j d/8 on. Of every 16 columns of x it has two, side by side: 4i + j of
    the first eight (i = 0, 1), or 4i + j - 4 of the second eight if j > 3.

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
