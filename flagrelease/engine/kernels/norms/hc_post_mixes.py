"""mHC after a sub-layer and the mixes before the next one, in one launch, in Triton.

A program makes some columns of one new stream, and of them a part of the mixes. Over ranks the same launch adds up
their parts of the output (`kernels/exchange.py`): the first stream's programs send a rank's own sum, all read.
Legend: T tokens, S parts of an output, M streams, H hidden size, N mixes a token.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.exchange import (
    Exchange,
    count_program,
    exchange_number,
    next_address,
    receive,
    require_room,
    send,
)
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, rows
from flagrelease.engine.kernels.norms.hc_mixes import exact_dot
from flagrelease.engine.kernels.row_vectors import rounded, sum_parts

TOKENS = 16  # of a program, which multiplies them on the matrix unit
FEW = 4  # up to here a program has one token, and needs no matrix unit
COLUMNS = 64


@jit
def _mix(
    y: tl.tensor, x_at: tl.tensor, comb_at: tl.tensor, rows_inside: tl.tensor, inside: tl.tensor, H: tl.tensor,
    M: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """y + sum_j comb[j, k] x_j of one stream's columns."""
    for j in tl.static_range(M):
        comb = tl.load(comb_at + j * M, mask=rows_inside, other=0.0)
        y += comb[:, None] * tl.load(x_at + j * H, mask=inside, other=0.0).to(tl.float32)
    return y


@early_kernel
def _post_mixes_kernel(
    o_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    addresses_ptr: tl.tensor,
    ticket_ptr: tl.tensor,
    x_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    fn_ptr: tl.tensor,
    y_ptr: tl.tensor,
    mixes_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    o_stride: tl.tensor,
    part_stride: tl.tensor,
    x_stride: tl.tensor,
    capacity: tl.tensor,
    programs: tl.tensor,
    S: tl.constexpr,
    T: tl.tensor,
    H: tl.tensor,
    N: tl.tensor,
    M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
) -> None:
    """y_k = post_k o + sum_j comb[j, k] x_j in some columns, and of them a part of fn . y and of the sum of squares."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    part, k = tl.program_id(1), tl.program_id(1) % M
    h, n = part // M * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_N)
    dtype = y_ptr.dtype.element_ty
    # fn is a weight, nobody's result.
    fn_inside = (n < N)[None, :] & (h < H)[:, None]
    fn = tl.load(fn_ptr + n[None, :] * (M * H) + (k * H + h)[:, None], mask=fn_inside, other=0.0)
    if RANKS > 1:
        address = next_address(addresses_ptr, RANK, RANKS)
    wait_for_results()
    if RANKS > 1:
        number = exchange_number(ticket_ptr)
    inside = (t < T)[:, None] & (h < H)[None, :]
    at_once: tl.constexpr = S if BLOCK_T == 1 else 7  # more tokens have no registers for more
    o = sum_parts(o_ptr, t[:, None] * o_stride + h[None, :], inside, part_stride, S, at_once)
    post = tl.load(post_ptr + t * M + k, mask=t < T, other=0.0)[:, None]
    x_at = x_ptr + t[:, None] * x_stride + h[None, :]
    comb_at = comb_ptr + t * (M * M) + k
    if RANKS > 1:
        at = t[:, None] * H + h[None, :]
        if k == 0:
            send(o, at, inside, number, address, addresses_ptr, capacity, RANK, RANKS)
        count_program(ticket_ptr, programs)
        y = _mix(tl.zeros((BLOCK_T, BLOCK_H), tl.float32), x_at, comb_at, t < T, inside, H, M)
        y += post * rounded(receive(o, at, inside, number, memory_ptr, capacity, RANK, RANKS, 0), dtype)
    else:
        y = _mix(post * rounded(o, dtype), x_at, comb_at, t < T, inside, H, M)
    y = rounded(y, dtype)
    tl.store(y_ptr + (t[:, None] * M + k) * H + h[None, :], cast(y, dtype), mask=inside)
    if BLOCK_T == 1:
        acc = tl.sum(tl.trans(y) * fn, axis=0)[None, :]
    else:
        acc = exact_dot(y, fn, tl.zeros((BLOCK_T, BLOCK_N), tl.float32), dtype)
    row = part * T + t
    tl.store(mixes_ptr + row[:, None] * N + n[None, :], acc, mask=(t < T)[:, None] & (n < N)[None, :])
    tl.store(squares_ptr + row, tl.sum(y * y, axis=1), mask=t < T)


def hc_post_mixes(
    parts: Tensor, x: Tensor, post: Tensor, comb: Tensor, fn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `reference.hc_post_mixes`."""
    return _launch(parts, x, post, comb, fn, None)


def hc_post_mixes_over_ranks(
    parts: Tensor, x: Tensor, post: Tensor, comb: Tensor, fn: Tensor, exchange: Exchange
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.hc_post_mixes` of all ranks' parts, of which each rank may have another number."""
    require_room(parts, exchange)
    return _launch(parts, x, post, comb, fn, exchange)


def _launch(
    parts: Tensor, x: Tensor, post: Tensor, comb: Tensor, fn: Tensor, exchange: Exchange | None
) -> tuple[Tensor, Tensor, Tensor]:
    T, M, H = x.shape
    N = len(fn)
    if parts.shape[1:] != (T, H) or parts.stride(-1) != 1 or fn.shape != (N, M * H) or fn.dtype != torch.float32:
        raise ValueError(f"parts {tuple(parts.shape)} and fn {fn.dtype} {tuple(fn.shape)} for streams {tuple(x.shape)}")
    if post.shape != (T, M) or comb.shape != (T, M, M):
        raise ValueError(f"post {tuple(post.shape)} and comb {tuple(comb.shape)} of streams {tuple(x.shape)}")
    x_rows = rows(x.flatten(-2))
    splits = M * ceil_div(H, COLUMNS)
    y = x.new_empty(T, M, H)
    mixes = torch.empty(splits, T, N, dtype=torch.float32, device=x.device)
    squares = torch.empty(splits, T, dtype=torch.float32, device=x.device)
    tokens = 1 if T <= FEW else TOKENS
    grid = ceil_div(T, tokens), splits
    memory = addresses = ticket = None
    capacity, rank, ranks = 0, 0, 1
    if exchange is not None:
        memory, addresses, ticket = exchange.memory, exchange.addresses, exchange.ticket
        capacity, rank, ranks = exchange.capacity, exchange.rank, exchange.ranks
    _post_mixes_kernel[grid](
        parts, memory, addresses, ticket, x_rows, post.contiguous(), comb.contiguous(), fn.contiguous(), y, mixes,
        squares, parts.stride(1), parts.stride(0), x_rows.stride(0), capacity, grid[0] * grid[1], len(parts), T, H, N,
        M=M, BLOCK_T=tokens, BLOCK_N=max(16, next_power_of_2(N)), BLOCK_H=COLUMNS, RANK=rank, RANKS=ranks,
    )  # fmt: skip
    return y, mixes, squares
