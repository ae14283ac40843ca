"""Pairs of a token and one of its experts, sorted by expert on the device. Legend: P pairs, E local experts."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import next_power_of_2


@early_kernel
def _plan_kernel(
    ids_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    start_ptr: tl.tensor,
    first: tl.tensor,
    P: tl.tensor,
    BLOCK_P: tl.constexpr,
) -> None:
    """Program e lists the pairs of local expert e from start[e] on; start[E] is the number of local pairs."""
    wait_for_results()
    e = tl.program_id(0)
    before = 0
    for p0 in range(0, P, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        local = tl.load(ids_ptr + p, mask=p < P, other=-1).to(tl.int32) - first
        before += tl.sum(((local >= 0) & (local < e) & (p < P)).to(tl.int32), axis=0)
    tl.store(start_ptr + e, before)
    if e < tl.num_programs(0) - 1:
        for p0 in range(0, P, BLOCK_P):
            p = p0 + tl.arange(0, BLOCK_P)
            local = tl.load(ids_ptr + p, mask=p < P, other=-1).to(tl.int32) - first
            mine = ((local == e) & (p < P)).to(tl.int32)
            tl.store(pairs_ptr + before + tl.cumsum(mine, axis=0) - 1, p, mask=mine > 0)
            before += tl.sum(mine, axis=0)


def plan_pairs(ids: Tensor, first: int, experts: int) -> tuple[Tensor, Tensor]:
    """(pairs int32 [P] sorted by local expert, start int32 [E + 1]); pairs beyond start[E] are not written."""
    pairs = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device)
    start = torch.empty(experts + 1, dtype=torch.int32, device=ids.device)
    block = min(1024, next_power_of_2(ids.numel()))
    _plan_kernel[(experts + 1,)](ids, pairs, start, first, ids.numel(), BLOCK_P=block)
    return pairs, start
