"""Rotary position embedding in Triton. Legend: A, B, C leading dimensions (batch, position, head); P pairs of a row."""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, output, unit_columns

PAIRS = 512  # of a program: four in each thread, whose eight numbers are one access
MANY_TOKENS = 512  # that fill a chip with programs of four times as many pairs


@early_kernel
def _rope_kernel(
    x_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_a: tl.tensor,
    x_b: tl.tensor,
    x_c: tl.tensor,
    t_a: tl.tensor,
    t_b: tl.tensor,
    t_c: tl.tensor,
    y_a: tl.tensor,
    y_b: tl.tensor,
    y_c: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    P: tl.tensor,
    INVERSE: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    NEXT: tl.constexpr,
) -> None:
    """SHARED: all c have the same angles, which are loaded once."""
    wait_for_results(NEXT)
    a = (tl.program_id(0) // B).to(tl.int64)
    b = (tl.program_id(0) % B).to(tl.int64)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    # Whole rows are loaded and stored: every second number alone takes many times as long.
    r = tl.arange(0, 2 * BLOCK_P)[None, :]
    x_inside = (c < C) & (r < 2 * P)
    x = tl.load(x_ptr + a * x_a + b * x_b + c * x_c + r, mask=x_inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (BLOCK_C, BLOCK_P, 2)))
    angle, inside = a * t_a + b * t_b + p, p < P
    if not SHARED:
        angle, inside = angle + c * t_c, inside & (c < C)
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0)
    if INVERSE:
        sin = -sin
    y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK_C, 2 * BLOCK_P))
    at = y_ptr + a * y_a + b * y_b + c * y_c + r
    tl.store(at, cast(y, y_ptr.dtype.element_ty), mask=x_inside)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False, out: Tensor | None = None) -> Tensor:
    """See `reference.apply_rope`. At most three leading dimensions."""
    if x.dim() > 4 or x.shape[-1] % 2:
        raise ValueError(f"RoPE takes [a, b, c, r] or fewer dimensions and an even r, not {tuple(x.shape)}")
    y = output(x, out)
    lead = (1,) * (4 - x.dim()) + tuple(x.shape[:-1])
    pairs = x.shape[-1] // 2
    x4, y4 = unit_columns(x).expand(*lead, 2 * pairs), y.expand(*lead, 2 * pairs)
    cos4, sin4 = (unit_columns(t.float()).expand(*lead, pairs) for t in (cos, sin))
    if cos4.stride() != sin4.stride():
        cos4, sin4 = cos4.contiguous(), sin4.contiguous()
    block_p = next_power_of_2(pairs)
    tokens = lead[0] * lead[1]
    most = PAIRS if tokens < MANY_TOKENS else 4 * PAIRS
    block_c = min(next_power_of_2(lead[2]), max(1, most // block_p))
    _rope_kernel[(tokens, ceil_div(lead[2], block_c))](
        x4, cos4, sin4, y4, *x4.stride()[:3], *cos4.stride()[:3], *y4.stride()[:3], lead[1], lead[2], pairs,
        INVERSE=inverse, SHARED=cos4.stride(2) == 0 or lead[2] == 1, BLOCK_C=block_c, BLOCK_P=block_p,
        NEXT=tokens < MANY_TOKENS,
    )  # fmt: skip
    return y
