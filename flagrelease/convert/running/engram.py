"""Engram tables of DeepSeek-V4.1: FP8 with a scale for each 32 elements of a row, 98 GB, streamed by rows.

Other weights have few scales, which are held whole while the codes stream by. A table's scales are 3 GB: a chunk of
them is read with the rows that they belong to, and where they are copied they are read again behind the last row, as
they stand behind the codes in a file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from blake3 import blake3

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.decoders import DECODERS
from flagrelease.convert.codecs.lookup import Lookup, count_lost
from flagrelease.convert.codecs.tables import e8m0_tables, inexact_possible
from flagrelease.convert.planning.jobs import Job, Piece, Product
from flagrelease.convert.planning.target import Action
from flagrelease.convert.running.blank import is_zero, refuse_zero
from flagrelease.convert.running.chunks import Reader, chunks_of
from flagrelease.convert.running.faults import require_finite, require_numbers, require_scales
from flagrelease.convert.running.journal import TensorResult
from flagrelease.convert.running.maker import Sink
from flagrelease.formats.formats import Format
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.manifest import ElementCounts
from flagrelease.shard.header import TensorMeta

_ONE = 127  # E8M0
_BF16_BYTES = 2


def stream_table(
    job: Job, fmt: Format, read: Reader, sink: Sink, lookup: Lookup, options: ConvertSpec
) -> list[TensorResult]:
    """Stream one table through; return what was learned of it, one result a product.

    Raises:
        CheckpointError: a NaN code or scale, a value beyond BF16, or all bytes of codes or of scales are zero.
    """
    weight, scale = job.tensor.weight, job.tensor.scale
    assert scale is not None
    products = {product.action: product for product in job.products}
    copy = products.get(Action.COPY)
    decoded = None if Action.DECODE not in products else _Decoded(job, products[Action.DECODE], fmt, lookup)
    digests = blake3(), blake3()
    blank = [job.rows is None] * 2
    row_bytes, chunks = chunks_of(weight, 1, 1 if decoded is None else _BF16_BYTES, job.rows)
    scale_bytes = scale.nbytes // scale.shape[0]
    wanted = () if copy is None else copy.pieces["weight"]
    for row, rows in chunks:
        codes = sink.buffer_for(rows * row_bytes, row, row_bytes, wanted)
        read(weight, row * row_bytes, codes)
        scales = np.empty(rows * scale_bytes, dtype=np.uint8)
        read(scale, row * scale_bytes, scales)
        for number, data in enumerate((codes, scales)):
            digests[number].update(data)
            blank[number] = blank[number] and is_zero(data)
        matrix, groups = codes.reshape(rows, row_bytes), scales.reshape(rows, scale_bytes)
        require_scales(scale, groups, row)
        require_numbers(job.tensor, fmt, matrix, row)
        if decoded is not None:
            decoded.emit(matrix, groups, row, sink)
        if copy is None:
            sink.drop(codes)
        else:
            sink.put(codes, row, row_bytes, wanted)
    for stored, zero in zip((weight, scale), blank, strict=True):
        if zero:
            refuse_zero(stored, options)
    own = {weight.name: digests[0].hexdigest(), scale.name: digests[1].hexdigest()}
    results = []
    if copy is not None:
        fill_up(copy.pieces["weight"], weight.shape[0], row_bytes, 0, sink)
        _copy_scales(scale, copy.pieces["scale"], job.rows, read, sink)
        counts = ElementCounts(copied=math.prod(job.tensor.spec.shape))
        parts = {"weight": own[weight.name], "scale": own[scale.name]}
        results.append(
            TensorResult(tensor=weight.name, action=Action.COPY, source=own, parts=parts, counts=counts, loss=None)
        )
    if decoded is not None:
        results.append(decoded.finish(own, sink))
    return results if job.rows is None else []


class _Decoded:
    """The table as BF16."""

    def __init__(self, job: Job, product: Product, fmt: Format, lookup: Lookup) -> None:
        self._tensor, self._pieces, self._lookup = job.tensor, product.pieces["weight"], lookup
        self._tables = e8m0_tables(DECODERS[fmt.name])
        self._digest: Any = blake3()
        self._inexact = 0

    def emit(self, codes: U8, scales: U8, row: int, sink: Sink) -> None:
        """Decode the rows from `row` on: codes [R, C], scales [R, ceil(C / 32)]."""
        out = sink.buffer_for(codes.size * _BF16_BYTES, row, codes.shape[1] * _BF16_BYTES, self._pieces)
        self._lookup(codes, scales, self._tensor.block, self._tables, out.view(np.uint16).reshape(codes.shape))
        if inexact_possible(self._tables, scales):
            self._inexact += count_lost(codes, scales, self._tensor.block, self._tables)
            require_finite(self._tensor, out, codes.shape, row)
        self._digest.update(out)
        sink.put(out, row, codes.shape[1] * _BF16_BYTES, self._pieces)

    def finish(self, source: dict[str, str], sink: Sink) -> TensorResult:
        """Fill up the last ranks, and say what was learned."""
        rows, columns = self._tensor.spec.shape
        fill_up(self._pieces, rows, columns * _BF16_BYTES, 0, sink)
        counts = ElementCounts(exact=rows * columns - self._inexact, rounded=self._inexact)
        parts = {"weight": self._digest.hexdigest()}
        return TensorResult(
            tensor=self._tensor.spec.name, action=Action.DECODE, source=source, parts=parts, counts=counts, loss=None
        )


def _copy_scales(
    scale: TensorMeta, pieces: tuple[Piece, ...], wanted: tuple[int, int] | None, read: Reader, sink: Sink
) -> None:
    row_bytes, chunks = chunks_of(scale, 1, 1, wanted)
    for row, rows in chunks:
        data = sink.buffer_for(rows * row_bytes, row, row_bytes, pieces)
        read(scale, row * row_bytes, data)
        sink.put(data, row, row_bytes, pieces)
    fill_up(pieces, scale.shape[0], row_bytes, _ONE, sink)


def fill_up(pieces: tuple[Piece, ...], rows: int, row_bytes: int, value: int, sink: Sink) -> None:
    """Send what the last ranks hold behind the last of a tensor's `rows`: bytes of one value."""
    missing = max((piece.cut.row1 for piece in pieces), default=rows) - rows
    if missing > 0:
        data = sink.buffer(missing * row_bytes)
        data.fill(value)
        sink.put(data, rows, row_bytes, pieces)
