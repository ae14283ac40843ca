"""Embedding of a vocabulary shard in Triton. Legend: T tokens, V rows of the shard, H columns."""
# ruff: noqa: N803  (dimensions of the legend)

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns


@early_kernel
def _embedding_kernel(
    ids_ptr: tl.tensor,
    table_ptr: tl.tensor,
    y_ptr: tl.tensor,
    table_stride: tl.tensor,
    vocab_start: tl.tensor,
    V: tl.tensor,
    H: tl.tensor,
    BLOCK_H: tl.constexpr,
) -> None:
    wait_for_results()
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.load(ids_ptr + t + tl.arange(0, 1)).to(tl.int64) - vocab_start  # a block of one: masks are blocks
    owned = (row >= 0) & (row < V)
    x = tl.load(table_ptr + row * table_stride + h, mask=owned & (h < H), other=0.0)
    tl.store(y_ptr + t * H + h, x, mask=h < H)


def embedding(ids: Tensor, table: Tensor, vocab_start: int = 0) -> Tensor:
    """See `reference.embedding`."""
    ids, table = ids.contiguous(), unit_columns(table)
    V, H = table.shape
    y = table.new_empty(*ids.shape, H)
    block = min(2048, next_power_of_2(H))
    _embedding_kernel[(ids.numel(), ceil_div(H, block))](
        ids, table, y, table.stride(0), vocab_start, V, H, BLOCK_H=block
    )
    return y
