"""FP4 activation quantisation in Triton. Legend: R rows, G groups of a row, HALF pairs of columns in a group."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, output, rows
from flagrelease.engine.kernels.quantisation.codes import e2m1_code, e2m1_value, power_of_two, power_of_two_exponent
from flagrelease.engine.kernels.weights import FP4_BLOCK

BLOCK_R = 32


@early_kernel
def _fp4_act_quant_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    R: tl.tensor,
    G: tl.tensor,
    HALF: tl.constexpr,
    ROUNDTRIP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    wait_for_results()
    r = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    g = tl.program_id(1)
    pair = g * HALF + tl.arange(0, HALF)[None, :]
    inside = (r < R)[:, None]
    d = tl.arange(0, 2 * HALF)[None, :] + g * 2 * HALF
    x = tl.load(x_ptr + r[:, None] * x_stride + d, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (BLOCK, HALF, 2)))
    amax = tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), axis=1)
    exponent = power_of_two_exponent(tl.maximum(amax, 6.0 * 2.0**-126) * (1.0 / 6.0))
    inverse = power_of_two(254 - exponent)[:, None]
    low = e2m1_code(tl.minimum(tl.maximum(even * inverse, -6.0), 6.0))
    high = e2m1_code(tl.minimum(tl.maximum(odd * inverse, -6.0), 6.0))
    if ROUNDTRIP:
        scale = power_of_two(exponent)[:, None]
        y = tl.reshape(tl.join(e2m1_value(low) * scale, e2m1_value(high) * scale), (BLOCK, 2 * HALF))
        tl.store(y_ptr + r[:, None] * y_stride + d, cast(y, y_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(y_ptr + r[:, None] * y_stride + pair, (low | (high << 4)).to(tl.uint8), mask=inside)
        tl.store(scale_ptr + r * G + g, power_of_two(exponent), mask=r < R)


def fp4_act_quant(x: Tensor, block: int = FP4_BLOCK) -> tuple[Tensor, Tensor]:
    """See `reference.fp4_act_quant`. `block` is a power of two."""
    packed = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=torch.uint8, device=x.device)
    scale = torch.empty(*x.shape[:-1], x.shape[-1] // block, dtype=torch.float32, device=x.device)
    _launch(x, packed, scale, block)
    return packed, scale


def fp4_act_quant_roundtrip(x: Tensor, block: int = FP4_BLOCK, out: Tensor | None = None) -> Tensor:
    """See `reference.fp4_act_quant_roundtrip`. `block` is a power of two."""
    y = output(x, out)
    _launch(x, y, None, block)
    return y


def _launch(x: Tensor, y: Tensor, scale: Tensor | None, block: int) -> None:
    if x.shape[-1] % block or block & (block - 1):
        raise ValueError(f"groups of {block} columns, a power of two, do not divide {x.shape[-1]}")
    x_rows, y_rows = rows(x), y.view(-1, y.shape[-1])
    R, groups = len(x_rows), x.shape[-1] // block
    _fp4_act_quant_kernel[(ceil_div(R, BLOCK_R), groups)](
        x_rows, y_rows, scale, x_rows.stride(0), y_rows.stride(0), R, groups,
        HALF=block // 2, ROUNDTRIP=scale is None, BLOCK=BLOCK_R,
    )  # fmt: skip
