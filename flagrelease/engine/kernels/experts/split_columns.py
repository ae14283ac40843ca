"""Columns sorted by their place in arranged FP4 words, as BF16 products with such weights take them.

FP8's rounding may happen on the way. Legend: R rows, S blocks of 256 columns in each.
"""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, round_e4m3
from flagrelease.engine.kernels.layout import ceil_div, rows
from flagrelease.engine.kernels.quantisation.codes import power_of_two, power_of_two_exponent
from flagrelease.engine.kernels.quantisation.fp4_codes import BLOCK

BLOCKS = 8  # of a program


@early_kernel
def _split_columns_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    R: tl.tensor,
    S: tl.tensor,
    QUANTISE: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    wait_for_results()
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    r, s = block // S, block % S
    d = tl.arange(0, 256)
    kind, place = d // 32, d % 32
    upper = place % 4 // 2  # of the block's halves
    source = 128 * upper + 64 * (kind // 4) + 32 * (kind // 2 % 2) + place // 4 * 4 + 2 * (kind % 2) + place % 2
    inside = (r < R)[:, None]
    x = tl.load(x_ptr + (r * x_stride + s * 256)[:, None] + source[None, :], mask=inside, other=0.0).to(tl.float32)
    if QUANTISE:  # see `act_quant`
        size = tl.abs(x)
        low = tl.max(tl.where((upper == 0)[None, :], size, 0.0), axis=1)
        high = tl.max(tl.where((upper == 1)[None, :], size, 0.0), axis=1)
        amax = tl.where((upper == 0)[None, :], low[:, None], high[:, None])
        exponent = power_of_two_exponent(tl.maximum(amax, 1e-4) * (1.0 / 448.0))
        x = tl.minimum(tl.maximum(x * power_of_two(254 - exponent), -448.0), 448.0)
        x = round_e4m3(x) * power_of_two(exponent)
    at = (r * S * 256 + s * 32)[:, None] + (kind * S * 32 + place)[None, :]
    tl.store(y_ptr + at, cast(x, y_ptr.dtype.element_ty), mask=inside)


def split_columns(x: Tensor, quantise: bool) -> Tensor:
    """x [R, d] in the order in which `fp4_bf16_operands` gives the columns of weights.

    Operand j's columns, j = 0..7, are those from j d/8 on. `quantise`: see act_quant_roundtrip. d is a multiple of 256.
    """
    if x.shape[-1] % BLOCK:
        raise ValueError(f"blocks of {BLOCK} columns do not divide {x.shape[-1]}")
    x_rows, y = rows(x), x.new_empty(x.shape)
    R, S = len(x_rows), x.shape[-1] // BLOCK
    _split_columns_kernel[(ceil_div(R * S, BLOCKS),)](
        x_rows, y, x_rows.stride(0), R, S, QUANTISE=quantise, BLOCKS=BLOCKS
    )
    return y
