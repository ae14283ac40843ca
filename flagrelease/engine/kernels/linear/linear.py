"""Linear layers in Triton: one kernel for every stored format.

Legend: M rows of activations, N outputs, K inputs, G groups (the o-groups' wo_a; otherwise 1), S parts of K. Few rows
make few tiles, so K is cut too, and what comes next adds the parts up.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, prefetch_rows, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import ceil_div, unit_columns
from flagrelease.engine.kernels.linear import widen
from flagrelease.engine.kernels.linear.product import product
from flagrelease.engine.kernels.linear.tiles import SHORTEST_PART, Tile, enough_programs, prefetched_lines
from flagrelease.engine.kernels.targets import TARGET
from flagrelease.engine.kernels.weights import FP8_BLOCK, check_fp4_weight, check_fp8_weight, weight_format


@early_kernel
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
    xs_group: tl.tensor,
    w_row: tl.tensor,
    w_group: tl.tensor,
    ws_row: tl.tensor,
    y_row: tl.tensor,
    y_part: tl.tensor,
    G: tl.tensor,
    per_part: tl.tensor,
    FORMAT: tl.constexpr,
    QUANTISED: tl.constexpr,
    SQRT_SOFTPLUS: tl.constexpr,
    PREFETCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WEIGHTS_LEFT: tl.constexpr,
) -> None:
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    group = (tl.program_id(2) % G).to(tl.int64)
    part = tl.program_id(2) // G
    begin, end = part * per_part, tl.minimum((part + 1) * per_part, K)
    x = x_ptr + m * x_row + group * x_group
    w = w_ptr + n * w_row + group * w_group
    xs = x  # not read unless there are scales
    ws = w
    if QUANTISED:
        xs = xs_ptr + m * xs_row + group * xs_group
    if FORMAT == "fp8":
        ws = ws_ptr + (group * N + tl.program_id(1) * BLOCK_N) // 128 * ws_row
    if FORMAT == "fp4":
        ws = ws_ptr + n * ws_row
    if PREFETCH > 0:  # weights are nobody's result
        bits: tl.constexpr = w_ptr.dtype.element_ty.primitive_bitwidth  # Triton 3.2 does not divide a nameless number
        width: tl.constexpr = bits // 8
        start = tl.where(n < N, n, 0) * w_row + group * w_group + begin
        prefetch_rows(w_ptr.to(tl.pointer_type(tl.uint8)) + start * width, BLOCK_N, PREFETCH)
    wait_for_results()
    acc = product(x, xs, m < M, w, ws, n < N, begin, end, K, FORMAT, QUANTISED, BLOCK_M, BLOCK_N, BLOCK_K, WEIGHTS_LEFT)
    if SQRT_SOFTPLUS:
        acc = sqrt_softplus(acc)
    y = y_ptr + part.to(tl.int64) * y_part + m[:, None] * y_row + group * N + n[None, :]
    tl.store(y, cast(acc, y_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@jit
def sqrt_softplus(x: tl.tensor) -> tl.tensor:
    """sqrt(log(1 + exp(x))), accurate where exp(x) is far below 1: log1p(t) = log(u) t / (u - 1) with u = fl(1 + t)."""
    t = tl.exp(-tl.abs(x))
    u = 1.0 + t
    log1p = tl.where(u == 1.0, t, tl.log(u) * (t / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.sqrt(tl.maximum(x, 0.0) + log1p)


def linear(x: Tensor, w: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """See `reference.linear`. BF16 or FP32 operands."""
    return _launch(x[..., None, :], None, w[None], None, out_dtype, out)[..., 0, :]


def linear_parts(x: Tensor, w: Tensor) -> Tensor:
    """See `reference.linear_parts`. BF16 or FP32 operands."""
    return _parts(x[:, None], None, w[None], None)


def grouped_linear(x: Tensor, w: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `reference.grouped_linear`. BF16 or FP32 operands."""
    if w.dim() != 3 or x.shape[-2] != w.shape[0]:
        raise ValueError(f"x {tuple(x.shape)} [.., G, K] does not fit w {tuple(w.shape)} [G, N, K]")
    return _launch(x, None, w, None, out_dtype)


def fp8_linear(
    xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `reference.fp8_linear`."""
    check_fp8_weight(w, ws)
    return _launch(xq[..., None, :], _alone(xs), w[None], ws[None], out_dtype, out)[..., 0, :]


def fp8_linear_parts(xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor) -> Tensor:
    """See `reference.fp8_linear_parts`."""
    check_fp8_weight(w, ws)
    return _parts(xq[:, None], _alone(xs), w[None], ws[None])


def fp8_grouped_linear(x: Tensor, w: Tensor, ws: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `reference.fp8_grouped_linear`. A group has a multiple of 128 outputs."""
    _check_groups(x, w, ws)
    if x.dtype == torch.bfloat16 and ws.dtype == torch.float8_e8m0fnu and x.shape[:-2].numel() >= widen.ROWS:
        return _launch(x, None, widen.widen(w.contiguous(), ws.contiguous()), None, out_dtype)
    return _launch(x, None, w, ws, out_dtype)


def fp8_grouped_linear_parts(x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor) -> Tensor:
    """See `reference.fp8_grouped_linear_parts`. A group has a multiple of 128 outputs."""
    _check_groups(x, w, ws)
    return _parts(x, xs, w, ws)


def fp4_linear(xq: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """See `reference.fp4_linear`."""
    check_fp4_weight(w, ws)
    return _launch(xq[..., None, :], _alone(xs), w[None], ws[None], out_dtype)[..., 0, :]


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
    if (xs is None) == (x.dtype in (torch.float8_e4m3fn, torch.float16)):
        raise ValueError(f"activations of {x.dtype} come {'with' if xs is None else 'without'} scales")
    if xs is not None and xs.shape[-1] != ceil_div(columns, FP8_BLOCK):
        raise ValueError(f"activation scales have shape {tuple(xs.shape)} for codes {tuple(x.shape)}")


def _alone(xs: Tensor | None) -> Tensor | None:
    """Scales with the axis of groups that their activation has."""
    return None if xs is None else xs[..., None, :]


def _check_groups(x: Tensor, w: Tensor, ws: Tensor) -> None:
    check_fp8_weight(w, ws)
    if x.shape[-2] != w.shape[0] or w.shape[1] % FP8_BLOCK:
        raise ValueError(f"x {tuple(x.shape)} [.., G, K] does not fit w {tuple(w.shape)} [G, N, K], N in blocks of 128")


def _parts(x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor | None) -> Tensor:
    """x [B, G, K] (scales [B, G, K/128]), w [G, N, K] -> FP32 [S, B, G * N]: S as many as fill a chip."""
    G, N, K = w.shape
    fmt, most = weight_format(w, ws), max(1, K // SHORTEST_PART)
    coded, single = x.dtype == torch.float8_e4m3fn, x.dtype == torch.float32
    tile = Tile.of(len(x), G * N * most, K // most, fmt, coded, single)
    programs = ceil_div(len(x), tile.block_m) * ceil_div(N, tile.block_n) * G
    parts = max(1, min(enough_programs(fmt, coded) // programs, most))
    per_part = ceil_div(ceil_div(K, parts), FP8_BLOCK) * FP8_BLOCK
    parts = ceil_div(K, per_part)
    y = torch.empty(parts, len(x), G * N, dtype=torch.float32, device=x.device)
    _run(x, xs, w, ws, y, per_part)
    return y


def _launch(
    x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor | None, out_dtype: torch.dtype, out: Tensor | None = None,
    sqrt_softplus: bool = False,
) -> Tensor:  # fmt: skip
    """x [.., G, K], w [G, N, K or K/2] -> [.., G, N]."""
    G, N = w.shape[:2]
    if out is None:
        y = torch.empty(*x.shape[:-1], N, dtype=out_dtype, device=x.device)
        _run(x.reshape(-1, G, x.shape[-1]), xs, w, ws, y.view(1, -1, G * N), 0, sqrt_softplus)
        return y
    if out.dtype != out_dtype or out.shape != (*x.shape[:-2], N) or out.dim() != 2 or out.stride(-1) != 1 or G != 1:
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)} for rows of {N} in {out_dtype}")
    _run(x, xs, w, ws, out[None], 0, sqrt_softplus)
    return out[:, None]


def _run(
    x: Tensor, xs: Tensor | None, w: Tensor, ws: Tensor | None, y: Tensor, per_part: int, sqrt_softplus: bool = False
) -> None:
    """x [M, G, K], w [G, N, K or K/2], their scales [.., K/128 or K/32] -> y [S, M, G * N]; per_part 0: S is 1."""
    fmt = weight_format(w, ws)
    M, (G, N), K = len(x), w.shape[:2], w.shape[2] * (2 if fmt == "fp4" else 1)
    check_activation(x, xs, K)
    x, w = unit_columns(x), unit_columns(w.view(torch.uint8) if fmt == "fp4" else w)
    if xs is not None:
        xs = unit_columns(xs.reshape(M, G, -1))
    if ws is not None:
        ws = stored_scale(ws.flatten(0, 1))
    coded, single = x.dtype == torch.float8_e4m3fn, torch.float32 in (x.dtype, w.dtype)
    tile = Tile.of(M, G * N * len(y), per_part or K, fmt, coded, single)
    step = (tile.block_m * x.element_size() + tile.block_n * w.element_size()) * tile.block_k
    _linear_kernel[(ceil_div(M, tile.block_m), ceil_div(N, tile.block_n), G * len(y))](
        x, xs, w, ws, y, M, N, K, x.stride(0), x.stride(1), *((0, 0) if xs is None else xs.stride()[:2]), w.stride(1),
        w.stride(0), 0 if ws is None else ws.stride(0), y.stride(1), y.stride(0), G, per_part or K,
        FORMAT=fmt, QUANTISED=xs is not None, SQRT_SOFTPLUS=sqrt_softplus,
        PREFETCH=prefetched_lines(K, per_part or K, w, tile.ahead), BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k, WEIGHTS_LEFT=tile.left, num_warps=tile.warps,
        num_stages=TARGET.sizes.stages(tile.stages, step),
    )  # fmt: skip
