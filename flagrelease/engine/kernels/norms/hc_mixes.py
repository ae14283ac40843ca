"""mHC's mixes of the streams, in Triton: what the streams' weights are made of.

Legend: T tokens, M streams, H hidden size, K = M*H, N mixes a token, S splits of K. The mixes are a thin product (24
outputs of 16,384 inputs) whose FP32 matrix every block of tokens reads, so K is split over programs, and the kernel
that uses the mixes adds the parts.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import cast, dot, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows

TOKENS, STEP = 16, 128  # tokens and columns of a program's tile
MANY = 1024  # tokens, of which a program takes more, since it reads all of fn for them
MANY_TOKENS, MANY_STEP = 64, 64
MOST_SPLITS = 32
PROGRAMS = 1024  # enough to fill a chip: a step of one waits for its step before


@jit
def exact_dot(x: tl.tensor, fn: tl.tensor, acc: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """acc + x fn to FP32's precision: for BF16 x on the matrix unit, with fn as a sum of three BF16 numbers.

    Each has 8 of fn's 24 bits: cut off, since rounding takes an instruction that is slow, and exact as well.
    """
    if dtype == tl.bfloat16:
        x = cast(x, tl.bfloat16)
        rest = fn - _first_bits(fn)
        last = rest - _first_bits(rest)
        return dot(x, _as_bfloat16(last), dot(x, _as_bfloat16(rest), dot(x, _as_bfloat16(fn), acc)))
    else:  # noqa: RET505 - Triton compiles what follows a return
        return dot(x, fn, acc)


@jit
def _first_bits(x: tl.tensor) -> tl.tensor:
    """FP32 x without what BF16 has no room for."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@jit
def _as_bfloat16(x: tl.tensor) -> tl.tensor:
    """FP32 x in BF16, cut off."""
    return (x.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@early_kernel
def _mixes_kernel(
    x_ptr: tl.tensor,
    fn_ptr: tl.tensor,
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    x_stride: tl.tensor,
    T: tl.tensor,
    K: tl.tensor,
    N: tl.tensor,
    per_split: tl.tensor,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Part s of fn . x and of the sum of squares: mixes [S, T, N], squares [S, T]."""
    wait_for_results()
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    s = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(s * per_split, tl.minimum((s + 1) * per_split, K), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_inside = (t < T)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + t[:, None] * x_stride + k[None, :], mask=x_inside, other=0.0).to(tl.float32)
        fn = tl.load(fn_ptr + n[None, :] * K + k[:, None], mask=(n < N)[None, :] & (k < K)[:, None], other=0.0)
        acc = exact_dot(x, fn, acc, x_ptr.dtype.element_ty)
        squares += tl.sum(x * x, axis=1)
    row = s * T + t
    tl.store(mixes_ptr + row[:, None] * N + n[None, :], acc, mask=(t < T)[:, None] & (n < N)[None, :])
    tl.store(squares_ptr + row, squares, mask=t < T)


def mixes_of(x_rows: Tensor, fn: Tensor) -> tuple[Tensor, Tensor]:
    """Of streams as rows [T, M*H]: FP32 parts of fn . x [S, T, N], and of the sums of squares [S, T]."""
    T, K = x_rows.shape
    N = len(fn)
    if fn.shape != (N, K) or fn.dtype != torch.float32:
        raise ValueError(f"fn {fn.dtype} {tuple(fn.shape)}: FP32 [.., {K}] is needed")
    tokens, step = (MANY_TOKENS, MANY_STEP) if T >= MANY else (TOKENS, STEP)
    blocks = ceil_div(T, tokens)
    most = MOST_SPLITS if T > TOKENS else 4 * MOST_SPLITS  # parts as short as can be, where nothing else hides latency
    splits = max(1, min(most, PROGRAMS // max(blocks, 1), ceil_div(K, step)))
    per_split = ceil_div(ceil_div(K, splits), step) * step
    mixes = torch.empty(splits, T, N, dtype=torch.float32, device=x_rows.device)
    squares = torch.empty(splits, T, dtype=torch.float32, device=x_rows.device)
    _mixes_kernel[(blocks, splits)](
        x_rows, fn.contiguous(), mixes, squares, x_rows.stride(0), T, K, N, per_split,
        BLOCK_T=tokens, BLOCK_N=max(16, next_power_of_2(N)), BLOCK_K=step,
    )  # fmt: skip
    return mixes, squares


def hc_mixes(x: Tensor, fn: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.hc_mixes`."""
    return mixes_of(rows(x.flatten(-2)), fn)
