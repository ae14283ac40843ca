"""Pairs of a token and one of its experts, sorted by expert on the device. Legend: P pairs, E local experts."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import next_power_of_2


@early_kernel
def _plan_kernel(
    ids_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    start_ptr: tl.tensor,
    chunks_ptr: tl.tensor,
    first: tl.tensor,
    P: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """Program e lists the pairs of local expert e from start[e] on, program E those of other ranks' experts.

    It also fills the places of `plan_chunks` from start[e] to start[e + 1].
    """
    wait_for_results()
    e, E = tl.program_id(0), tl.num_programs(0) - 1
    begin = 0
    for p0 in range(0, P, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        begin += tl.sum(((_expert(ids_ptr, p, P, first, E) < e) & (p < P)).to(tl.int32), axis=0)
    tl.store(start_ptr + e, begin)
    end = begin
    for p0 in range(0, P, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        mine = ((_expert(ids_ptr, p, P, first, E) == e) & (p < P)).to(tl.int32)
        tl.store(pairs_ptr + end + tl.cumsum(mine, axis=0) - 1, p, mask=mine > 0)
        end += tl.sum(mine, axis=0)
    if chunks_ptr is not None:
        for i0 in range(begin, end, BLOCK_P):
            i = i0 + tl.arange(0, BLOCK_P)
            at = tl.minimum(begin + (i - begin) * CHUNK, end)
            tl.store(chunks_ptr + 3 * i, tl.where(e < E, e, -1), mask=i < end)
            tl.store(chunks_ptr + 3 * i + 1, at, mask=i < end)
            tl.store(chunks_ptr + 3 * i + 2, tl.minimum(at + CHUNK, end), mask=i < end)


@jit
def _expert(ids_ptr: tl.tensor, p: tl.tensor, P: tl.tensor, first: tl.tensor, E: tl.tensor) -> tl.tensor:
    """Local experts of pairs p; E for those of other ranks."""
    local = tl.load(ids_ptr + p, mask=p < P, other=-1).to(tl.int32) - first
    return tl.where((local >= 0) & (local < E), local, E)


def plan_pairs(ids: Tensor, first: int, experts: int) -> tuple[Tensor, Tensor]:
    """(pairs int32 [P] sorted by local expert, start int32 [E + 1]); from start[E] on those of other ranks' experts."""
    pairs, start, _ = _plan(ids, first, experts, 0)
    return pairs, start


def plan_chunks(ids: Tensor, first: int, experts: int, chunk: int) -> tuple[Tensor, Tensor]:
    """(pairs as `plan_pairs` sorts them, chunks int32 [P, 3]).

    Up to `chunk` pairs of one expert form a chunk: (local expert, begin, end) of its pairs, with -1 for other ranks'
    experts. Chunks of one expert lie side by side. In places that are left begin = end.
    """
    pairs, _, chunks = _plan(ids, first, experts, chunk)
    assert chunks is not None
    return pairs, chunks


def _plan(ids: Tensor, first: int, experts: int, chunk: int) -> tuple[Tensor, Tensor, Tensor | None]:
    count = ids.numel()
    pairs = torch.empty(count, dtype=torch.int32, device=ids.device)
    start = torch.empty(experts + 1, dtype=torch.int32, device=ids.device)
    chunks = torch.empty(count, 3, dtype=torch.int32, device=ids.device) if chunk else None
    block = min(1024, next_power_of_2(count))
    _plan_kernel[(experts + 1,)](ids, pairs, start, chunks, first, count, CHUNK=chunk, BLOCK_P=block)
    return pairs, start, chunks
