"""Rounding of V4.1's shared keys in Triton: FP4 under E4M3 scales. Legend: R rows, G groups of GROUP columns each."""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, round_e4m3
from flagrelease.engine.kernels.layout import ceil_div, output, rows
from flagrelease.engine.kernels.quantisation.codes import e2m1_code, e2m1_value
from flagrelease.engine.kernels.reference.v41 import KEY_AMAX_FLOOR, KEY_GROUP

GROUPS = 32  # of a program


@early_kernel
def _fp4_keys_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    R: tl.tensor,
    G: tl.tensor,
    floor: tl.tensor,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    wait_for_results()
    each = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    r, column = each // G, (each % G * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    inside = (r < R)[:, None]
    x = tl.load(x_ptr + (r * x_stride)[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(x), axis=1), floor)
    scale = tl.minimum(tl.div_rn(amax, tl.full((GROUPS,), 6.0, tl.float32)), 448.0)
    scale = tl.broadcast_to(round_e4m3(scale)[:, None], (GROUPS, GROUP))
    y = tl.minimum(tl.maximum(tl.div_rn(x, scale), -6.0), 6.0)
    y = e2m1_value(e2m1_code(y)) * scale
    tl.store(y_ptr + (r * y_stride)[:, None] + column, cast(y, y_ptr.dtype.element_ty), mask=inside)


def fp4_keys_roundtrip(x: Tensor, out: Tensor | None = None) -> Tensor:
    """See `reference.v41.fp4_keys_roundtrip`."""
    if x.shape[-1] % KEY_GROUP:
        raise ValueError(f"groups of {KEY_GROUP} columns do not divide {x.shape[-1]}")
    y = output(x, out)
    x_rows, y_rows = rows(x), y.view(-1, y.shape[-1])
    R, G = len(x_rows), x.shape[-1] // KEY_GROUP
    _fp4_keys_kernel[(ceil_div(R * G, GROUPS),)](
        x_rows, y_rows, x_rows.stride(0), y_rows.stride(0), R, G, KEY_AMAX_FLOOR, GROUP=KEY_GROUP, GROUPS=GROUPS
    )
    return y
