"""The chunks of rows in which a tensor is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.planning.memory import CHUNK_BYTES
from flagrelease.shard.header import TensorMeta

Reader = Callable[[TensorMeta, int, U8], None]  # (tensor, byte offset in it, array to fill)


def chunks_of(
    weight: TensorMeta, row_step: int, width: int, rows: tuple[int, int] | None = None
) -> tuple[int, Iterator[tuple[int, int]]]:
    """Bytes of a row, and (first row, rows) of chunks of about CHUNK_BYTES of output, cut at multiples of row_step.

    `rows`: the only ones that are wanted, half-open."""
    total = weight.shape[0] if weight.shape else 1
    first, end = rows or (0, total)
    row_bytes = weight.nbytes // max(total, 1)
    step = max(1, CHUNK_BYTES // max(1, row_bytes * width * row_step)) * row_step
    return row_bytes, ((row, min(step, end - row)) for row in range(first - first % row_step, end, step))
