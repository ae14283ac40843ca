"""FP8 activation quantisation in Triton. Legend: R rows, G groups of a row, GROUP columns that share one scale."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, round_e4m3
from flagrelease.engine.kernels.layout import ceil_div, output, rows
from flagrelease.engine.kernels.quantisation.codes import power_of_two, power_of_two_exponent
from flagrelease.engine.kernels.quantisation.e4m3 import as_e4m3
from flagrelease.engine.kernels.weights import FP8_BLOCK

BLOCK_R = 16


@early_kernel
def _act_quant_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    R: tl.tensor,
    G: tl.tensor,
    GROUP: tl.constexpr,
    ROUNDTRIP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    wait_for_results()
    r = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    g = tl.program_id(1)
    column = g * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (r < R)[:, None]
    x = tl.load(x_ptr + r[:, None] * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(x), axis=1), 1e-4)
    exponent = power_of_two_exponent(amax * (1.0 / 448.0))
    # The reciprocal of a power of two is exact, so this is upstream's division.
    y = x * power_of_two(254 - exponent)[:, None]
    y = tl.minimum(tl.maximum(y, -448.0), 448.0)
    at = y_ptr + r[:, None] * y_stride + column
    if ROUNDTRIP:  # without the FP8 type, which not every chip has
        tl.store(at, cast(round_e4m3(y) * power_of_two(exponent)[:, None], y_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(at, as_e4m3(y, y_ptr.dtype.element_ty), mask=inside)
        tl.store(scale_ptr + r * G + g, power_of_two(exponent), mask=r < R)


def act_quant(x: Tensor, block: int = FP8_BLOCK) -> tuple[Tensor, Tensor]:
    """See `reference.act_quant`. `block` is a power of two."""
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(*x.shape[:-1], x.shape[-1] // block, dtype=torch.float32, device=x.device)
    _launch(x, codes, scale, block)
    return codes, scale


def act_quant_roundtrip(x: Tensor, block: int = FP8_BLOCK, out: Tensor | None = None) -> Tensor:
    """See `reference.act_quant_roundtrip`. `block` is a power of two."""
    y = output(x, out)
    _launch(x, y, None, block)
    return y


def _launch(x: Tensor, y: Tensor, scale: Tensor | None, block: int) -> None:
    if x.shape[-1] % block or block & (block - 1):
        raise ValueError(f"groups of {block} columns, a power of two, do not divide {x.shape[-1]}")
    x_rows, y_rows = rows(x), y.view(-1, y.shape[-1])
    R, groups = len(x_rows), x.shape[-1] // block
    _act_quant_kernel[(ceil_div(R, BLOCK_R), groups)](
        x_rows, y_rows, scale, x_rows.stride(0), y_rows.stride(0), R, groups,
        GROUP=block, ROUNDTRIP=scale is None, BLOCK=BLOCK_R,
    )  # fmt: skip
