"""Linear layers in Triton: one kernel for every stored format.

Legend: M rows of activations, N outputs, K inputs, G groups (the o-groups' wo_a; otherwise 1).
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import unit_columns
from flagrelease.engine.kernels.product import product
from flagrelease.engine.kernels.weights import FP8_BLOCK, ceil_div, check_fp4_weight, check_fp8_weight, weight_format

FILLED = 128  # programs that keep a chip busy


@jit
def _linear_kernel(
    x_ptr: tl.tensor,
    xs_ptr: tl.tensor,
    w_ptr: tl.tensor,
    ws_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    x_row: tl.tensor,
    x_group: tl.tensor,
    xs_row: tl.tensor,
    w_row: tl.tensor,
    w_group: tl.tensor,
    ws_row: tl.tensor,
    y_row: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    SQRT_SOFTPLUS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    group = tl.program_id(2).to(tl.int64)
    x = x_ptr + m * x_row + group * x_group
    w = w_ptr + n * w_row + group * w_group
    xs = x  # not read unless there are scales
    ws = w
    if QUANTISED:
        xs = xs_ptr + m * xs_row
    if FORMAT == "fp8":
        ws = ws_ptr + n // 128 * ws_row
    if FORMAT == "fp4":
        ws = ws_ptr + n * ws_row
    acc = product(x, xs, m < M, w, ws, n < N, K, FORMAT, QUANTISED, BLOCK_M, BLOCK_N, BLOCK_K)
    if SQRT_SOFTPLUS:
        acc = sqrt_softplus(acc)
    y = y_ptr + m[:, None] * y_row + group * N + n[None, :]
    tl.store(y, cast(acc, y_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@jit
def sqrt_softplus(x: tl.tensor) -> tl.tensor:
    """sqrt(log(1 + exp(x))), accurate where exp(x) is far below 1: log1p(t) = log(u) t / (u - 1) with u = fl(1 + t)."""
    t = tl.exp(-tl.abs(x))
    u = 1.0 + t
    log1p = tl.where(u == 1.0, t, tl.log(u) * (t / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.sqrt(tl.maximum(x, 0.0) + log1p)


def linear(x: Tensor, w: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `reference.linear`. BF16 or FP32 operands."""
    return grouped_linear(x[..., None, :], w[None], out_dtype)[..., 0, :]


def grouped_linear(x: Tensor, w: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `reference.grouped_linear`. BF16 or FP32 operands."""
    if w.dim() != 3 or x.shape[-2] != w.shape[0]:
        raise ValueError(f"x {tuple(x.shape)} [.., G, K] does not fit w {tuple(w.shape)} [G, N, K]")
    return _launch(x, None, w, None, out_dtype)


def fp8_linear(xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """See `reference.fp8_linear`."""
    check_fp8_weight(w, ws)
    return _launch(xq[..., None, :], xs, w[None], ws, out_dtype)[..., 0, :]


def fp4_linear(xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """See `reference.fp4_linear`."""
    check_fp4_weight(w, ws)
    return _launch(xq[..., None, :], xs, w[None], ws, out_dtype)[..., 0, :]


def gate_scores(x: Tensor, w: Tensor) -> Tensor:
    """See `reference.gate_scores`. BF16 or FP32 operands."""
    return _launch(x[..., None, :], None, w[None], None, torch.float32, sqrt_softplus=True)[..., 0, :]


def stored_scale(ws: Tensor | None) -> Tensor | None:
    """A weight's scale as kernels take it: E8M0 as its bytes (Triton has no such type), FP32 as it is."""
    if ws is None:
        return None
    return unit_columns(ws.view(torch.uint8) if ws.dtype == torch.float8_e8m0fnu else ws)


def check_activation(x: Tensor, xs: Tensor | None, columns: int) -> None:
    """Refuse activations [.., columns] whose scales are missing, too many or of another shape."""
    if x.shape[-1] != columns:
        raise ValueError(f"the activation has {x.shape[-1]} columns, the weight {columns}")
    if (xs is None) == (x.dtype == torch.float8_e4m3fn):
        raise ValueError(f"activations of {x.dtype} come {'with' if xs is None else 'without'} scales")
    if xs is not None and xs.shape[-1] != ceil_div(columns, FP8_BLOCK):
        raise ValueError(f"activation scales have shape {tuple(xs.shape)} for codes {tuple(x.shape)}")


def tile_shape(rows: int, outputs: int, fmt: str, single: bool) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, BLOCK_K, warps); only speed depends on them.

    Args:
        rows: of x, or the mean number that an expert gets.
        outputs: of all groups or experts together; few of them are cut finer, so that a small batch fills the chip.
        fmt: of the weight.
        single: FP32 operands, which take twice the shared memory.
    """
    if rows > 64 and not single:
        return (64, 128, 128, 4) if fmt == "fp4" else (128, 128, 64, 8)
    block_m = max(16, triton.next_power_of_2(min(rows, 64)))
    block_n = 64
    while block_n > 16 and outputs // block_n < FILLED:
        block_n //= 2
    return block_m, block_n, 32 if single else 128, 4


def _launch(
    x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor | None, out_dtype: torch.dtype, sqrt_softplus: bool = False
) -> Tensor:
    """x [.., G, K], w [G, N, K or K/2] -> [.., G, N]."""
    fmt = weight_format(w)
    G, N, K = w.shape[0], w.shape[1], w.shape[2] * (2 if fmt == "fp4" else 1)
    check_activation(x, xs, K)
    y = torch.empty(*x.shape[:-1], N, dtype=out_dtype, device=x.device)
    x, w = unit_columns(x.reshape(-1, G, K)), unit_columns(w.view(torch.uint8) if fmt == "fp4" else w)
    M = len(x)
    if xs is not None:
        xs = unit_columns(xs.reshape(M, -1))
    ws = stored_scale(ws)
    single = x.dtype == torch.float32 or w.dtype == torch.float32
    block_m, block_n, block_k, warps = tile_shape(M, G * N, fmt, single)
    _linear_kernel[(triton.cdiv(M, block_m), triton.cdiv(N, block_n), G)](
        x, xs, w, ws, y, M, N, K, x.stride(0), x.stride(1), 0 if xs is None else xs.stride(0),
        w.stride(1), w.stride(0), 0 if ws is None else ws.stride(0), G * N,
        FORMAT=fmt, QUANTISED=xs is not None, SQRT_SOFTPLUS=sqrt_softplus,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps,
    )  # fmt: skip
    return y
