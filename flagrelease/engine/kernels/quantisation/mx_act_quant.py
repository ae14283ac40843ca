"""MXFP8's rounding of activations in Triton. Legend: R rows, G groups of 32 columns in each."""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, round_e4m3
from flagrelease.engine.kernels.layout import ceil_div, output, rows
from flagrelease.engine.kernels.quantisation.codes import power_of_two
from flagrelease.engine.kernels.weights import MX_BLOCK

GROUPS = 32  # of a program


@early_kernel
def _mx_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    R: tl.tensor,
    G: tl.tensor,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    wait_for_results()
    each = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    r, column = each // G, (each % G * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    inside = (r < R)[:, None]
    x = tl.load(x_ptr + (r * x_stride)[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(x), axis=1)
    exponent = tl.maximum((amax.to(tl.int32, bitcast=True) >> 23) - 8, 1)
    # The reciprocal of a power of two is exact: this is a division.
    y = tl.minimum(tl.maximum(x * power_of_two(254 - exponent)[:, None], -448.0), 448.0)
    y = round_e4m3(y) * power_of_two(exponent)[:, None]
    tl.store(y_ptr + (r * y_stride)[:, None] + column, cast(y, y_ptr.dtype.element_ty), mask=inside)


def mx_act_quant_roundtrip(x: Tensor, out: Tensor | None = None) -> Tensor:
    """See `reference.mx_act_quant_roundtrip`."""
    if x.shape[-1] % MX_BLOCK:
        raise ValueError(f"groups of {MX_BLOCK} columns do not divide {x.shape[-1]}")
    y = output(x, out)
    x_rows, y_rows = rows(x), y.view(-1, y.shape[-1])
    R, G = len(x_rows), x.shape[-1] // MX_BLOCK
    _mx_kernel[(ceil_div(R * G, GROUPS),)](
        x_rows, y_rows, x_rows.stride(0), y_rows.stride(0), R, G, GROUP=MX_BLOCK, GROUPS=GROUPS
    )
    return y
