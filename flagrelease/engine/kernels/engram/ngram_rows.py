"""N-grams hashed to rows of an Engram table, in Triton. Legend: N tokens, L ids of each, HEADS rows of each length."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import next_power_of_2, rows


@early_kernel
def _ngram_kernel(
    ids_ptr: tl.tensor,
    multipliers_ptr: tl.tensor,
    primes_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    y_ptr: tl.tensor,
    ids_stride: tl.tensor,
    L: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A program does all rows of a token: each column keeps the hash of its own length."""
    c = tl.arange(0, BLOCK)
    C: tl.constexpr = (L - 1) * HEADS
    prime = tl.load(primes_ptr + c, mask=c < C, other=1)
    offset = tl.load(offsets_ptr + c, mask=c < C, other=0)
    wait_for_results()
    n = tl.program_id(0).to(tl.int64)
    ids = ids_ptr + n * ids_stride
    mixed = tl.load(ids) * tl.load(multipliers_ptr)
    hashes = tl.zeros((BLOCK,), tl.int64)
    for back in tl.static_range(1, L):
        mixed = mixed ^ (tl.load(ids + back) * tl.load(multipliers_ptr + back))
        hashes = tl.where(c // HEADS == back - 1, mixed, hashes)
    tl.store(y_ptr + n * C + c, hashes % prime + offset, mask=c < C)


def ngram_rows(ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor) -> Tensor:
    """See `reference.v41.ngram_rows`."""
    L, (lengths, heads) = ids.shape[-1], primes.shape
    if multipliers.shape != (L,) or lengths != L - 1 or offsets.shape != primes.shape:
        raise ValueError(
            f"n-grams of {L} ids, multipliers {tuple(multipliers.shape)}, primes {tuple(primes.shape)}, offsets "
            f"{tuple(offsets.shape)}"
        )
    if {each.dtype for each in (ids, multipliers, primes, offsets)} != {torch.int64}:
        raise ValueError("n-grams are hashed in int64")
    ids_rows = rows(ids)
    y = torch.empty(*ids.shape[:-1], lengths * heads, dtype=torch.int64, device=ids.device)
    _ngram_kernel[(len(ids_rows),)](
        ids_rows, multipliers.contiguous(), primes.contiguous(), offsets.contiguous(), y, ids_rows.stride(0),
        L=L, HEADS=heads, BLOCK=next_power_of_2(lengths * heads), num_warps=1,
    )  # fmt: skip
    return y
