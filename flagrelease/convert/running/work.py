"""One job: read a source tensor in chunks of rows, make its products, hand the bytes to the files they belong to.

Memory is a few chunks a worker. Only a scale is held whole: it is at most 1/16 of its weight's bytes and, in
DeepSeek-V4, under a megabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.decoders import DECODERS
from flagrelease.convert.codecs.lookup import Index, Lookup, contains, count_lost
from flagrelease.convert.codecs.repack import REPACK_TILE, repack_scales, repack_tables
from flagrelease.convert.codecs.scales import scale_storage, scale_values
from flagrelease.convert.codecs.tables import Tables, bf16_tables, e8m0_tables, inexact_possible
from flagrelease.convert.planning.jobs import Job, Piece, Product
from flagrelease.convert.planning.memory import CHUNK_BYTES
from flagrelease.convert.planning.target import Action
from flagrelease.convert.running.blank import is_zero, must_hold_values, refuse_zero
from flagrelease.convert.running.journal import SCALE, WEIGHT, TensorResult
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import SCALE_RULE, Format
from flagrelease.model.v4.stored import StoredWeight
from flagrelease.records.manifest import ElementCounts
from flagrelease.records.recipe import ConvertSpec
from flagrelease.shard.header import TensorMeta

_E8M0_NAN = 255


class Sink(Protocol):
    """Where chunks go."""

    def buffer(self, nbytes: int) -> U8:
        """Wait for memory; a byte array of this length. It is given back by `put` or `drop`."""
        ...

    def put(self, data: U8, row: int, row_bytes: int, pieces: tuple[Piece, ...]) -> None:
        """Send a filled buffer, whole rows from `row` on, to the files of `pieces`."""
        ...

    def drop(self, data: U8) -> None:
        """Give a buffer back."""
        ...


Reader = Callable[[TensorMeta, int, U8], None]  # (tensor, byte offset in it, array to fill)


def run_job(job: Job, read: Reader, sink: Sink, lookup: Lookup, options: ConvertSpec) -> list[TensorResult]:
    """Stream one tensor through; return what was learned of it, one result a product.

    Raises:
        CheckpointError: a NaN code, a scale that is NaN, infinite or negative, or, where `options` do not allow it,
            an FP4 element that FP8 cannot hold, or a weight or scale whose bytes are all zero.
    """
    if job.tensor.format is None:
        return [_copy_plain(job, read, sink, options)]
    return _stream_quantised(job, job.tensor.format, read, sink, lookup, options)


def _copy_plain(job: Job, read: Reader, sink: Sink, options: ConvertSpec) -> TensorResult:
    weight = job.tensor.weight
    (product,) = job.products
    digest = blake3()
    row_bytes, chunks = _chunks(weight, 1, 1)
    blank = must_hold_values(job.tensor)
    for row, rows in chunks:
        data = sink.buffer(rows * row_bytes)
        read(weight, row * row_bytes, data)
        digest.update(data)
        blank = blank and is_zero(data)
        sink.put(data, row, row_bytes, product.weight)
    if blank:
        refuse_zero(weight, options)
    own = digest.hexdigest()
    counts = ElementCounts(copied=weight.elements)
    return TensorResult(
        tensor=weight.name, action=Action.COPY, source={weight.name: own}, parts={WEIGHT: own}, counts=counts
    )


@dataclass(slots=True)
class _Making:
    """One product while its weight streams: a copy (`tables` is None), or a look-up of `width` bytes a stored byte."""

    product: Product
    tables: Tables | None
    index: Index | None
    block: tuple[int, int]
    width: int
    new_scale: U8 | None
    scale_row_bytes: int
    counting: bool
    digest: Any = field(default_factory=blake3)
    inexact: int = 0


def _stream_quantised(
    job: Job, fmt: Format, read: Reader, sink: Sink, lookup: Lookup, options: ConvertSpec
) -> list[TensorResult]:
    tensor = job.tensor
    assert tensor.scale is not None
    scale = np.empty(tensor.scale.nbytes, dtype=np.uint8)
    read(tensor.scale, 0, scale)
    if is_zero(scale):
        refuse_zero(tensor.scale, options)
    makings = [_prepare(product, tensor, fmt, scale) for product in job.products]
    weight_digest, blank = blake3(), True
    widest = max(making.width for making in makings)
    row_bytes, chunks = _chunks(tensor.weight, tensor.block[0], widest)
    for row, rows in chunks:
        codes = sink.buffer(rows * row_bytes)
        read(tensor.weight, row * row_bytes, codes)
        weight_digest.update(codes)
        blank = blank and is_zero(codes)
        matrix = codes.reshape(rows, row_bytes)
        _require_numbers(tensor, fmt, matrix, row)
        for making in makings:
            if making.tables is not None:
                _emit(making, making.tables, tensor, matrix, row, sink, lookup, options)
        copied = [making.product for making in makings if making.tables is None]
        if copied:
            sink.put(codes, row, row_bytes, copied[0].weight)
        else:
            sink.drop(codes)
    if blank:
        refuse_zero(tensor.weight, options)
    source = {tensor.weight.name: weight_digest.hexdigest(), tensor.scale.name: blake3(scale).hexdigest()}
    return [_finish(making, tensor, source, sink) for making in makings]


def _prepare(product: Product, tensor: StoredWeight, fmt: Format, scale: U8) -> _Making:
    assert tensor.scale is not None
    stored = scale.view(scale_storage(tensor.scale.dtype)).reshape(tensor.scale.shape)
    _require_scales(tensor.scale, stored)
    block = tensor.block[0], tensor.block[1] // fmt.elements_per_byte
    if product.action is Action.COPY:
        return _Making(product, None, None, block, 1, scale, stored.shape[1] * stored.itemsize, False)
    index: Index
    new_scale = None
    if product.action is Action.REPACK:
        tables = repack_tables()
        index, new_scale = repack_scales(stored)
    elif tensor.scale.dtype == "F8_E8M0":
        tables, index = e8m0_tables(DECODERS[fmt.name]), stored
    else:
        values, inverse = np.unique(scale_values(stored, tensor.scale.dtype), return_inverse=True)
        tables, index = bf16_tables(DECODERS[fmt.name], values), inverse.reshape(stored.shape).astype(np.int32)
    row_bytes = 0 if new_scale is None else new_scale.shape[1]
    flat = None if new_scale is None else new_scale.reshape(-1)
    counting = inexact_possible(tables, index)
    return _Making(product, tables, index, block, tables.entries.itemsize, flat, row_bytes, counting)


def _emit(
    making: _Making,
    tables: Tables,
    tensor: StoredWeight,
    codes: U8,
    row: int,
    sink: Sink,
    lookup: Lookup,
    options: ConvertSpec,
) -> None:
    assert making.index is not None
    first = row // making.block[0]
    index = making.index[first : first + -(-len(codes) // making.block[0])]
    if making.counting:
        lost = count_lost(codes, index, making.block, tables)
        making.inexact += lost
        if lost and making.product.action is Action.REPACK and options.lossy_repack == "refuse":
            raise CheckpointError(
                f"{tensor.weight.file}: tensor {tensor.spec.name!r}: rows {row} to {row + len(codes) - 1} hold {lost} "
                f"FP4 elements that FP8 with a scale per {REPACK_TILE[0]}x{REPACK_TILE[1]} cannot hold exactly; a "
                f"recipe with 'lossy_repack: allow' rounds and counts them"
            )
    out = sink.buffer(codes.size * making.width)
    lookup(codes, index, making.block, tables, out.view(tables.entries.dtype).reshape(codes.shape))
    if making.counting and making.product.action is Action.DECODE:
        _require_finite(tensor, out, codes.shape, row)
    making.digest.update(out)
    sink.put(out, row, codes.shape[1] * making.width, making.product.weight)


def _finish(making: _Making, tensor: StoredWeight, source: dict[str, str], sink: Sink) -> TensorResult:
    assert tensor.scale is not None
    elements = np.prod(tensor.spec.shape, dtype=np.int64).item()
    action, inexact = making.product.action, making.inexact
    weight = source[tensor.weight.name] if action is Action.COPY else making.digest.hexdigest()
    parts = {WEIGHT: weight}
    if making.new_scale is not None:
        data = sink.buffer(len(making.new_scale))
        np.copyto(data, making.new_scale)
        parts[SCALE] = blake3(data).hexdigest()
        sink.put(data, 0, making.scale_row_bytes, making.product.scale)
    counts = {
        Action.COPY: ElementCounts(copied=elements),
        Action.DECODE: ElementCounts(exact=elements - inexact, rounded=inexact),
        Action.REPACK: ElementCounts(repacked=elements - inexact, lost=inexact),
    }[action]
    return TensorResult(tensor=tensor.spec.name, action=action, source=source, parts=parts, counts=counts)


def _chunks(weight: TensorMeta, row_step: int, width: int) -> tuple[int, Iterator[tuple[int, int]]]:
    """Bytes of a row, and (first row, rows) of chunks of about CHUNK_BYTES of output, cut at multiples of row_step."""
    total = weight.shape[0] if weight.shape else 1
    row_bytes = weight.nbytes // max(total, 1)
    step = max(1, CHUNK_BYTES // max(1, row_bytes * width * row_step)) * row_step
    return row_bytes, ((row, min(step, total - row)) for row in range(0, total, step))


def _require_scales(scale: TensorMeta, stored: NDArray[Any]) -> None:
    bad = stored == _E8M0_NAN if scale.dtype == "F8_E8M0" else None
    if bad is None:
        values = scale_values(stored, scale.dtype)
        bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r} at [{row}, {column}]: stored as {stored[row, column]}, "
            f"which is NaN, infinite or negative; {SCALE_RULE}"
        )


def _require_finite(tensor: StoredWeight, out: U8, shape: tuple[int, ...], row: int) -> None:
    infinite = (out.view(np.uint16) & 0x7FFF) == 0x7F80
    if infinite.any():
        r, c = np.argwhere(infinite.reshape(shape[0], -1))[0]
        raise CheckpointError(
            f"{tensor.weight.file}: tensor {tensor.spec.name!r} at [{row + r}, {c}]: value times scale is beyond BF16"
        )


def _require_numbers(tensor: StoredWeight, fmt: Format, codes: U8, row: int) -> None:
    nan_codes = DECODERS[fmt.name].nan_codes
    if nan_codes.any() and contains(codes, nan_codes):
        r, c = np.argwhere(nan_codes[codes])[0]
        raise CheckpointError(
            f"{tensor.weight.file}: tensor {tensor.spec.name!r} at [{row + r}, {c}]: "
            f"{fmt.name} code 0x{codes[r, c]:02X} is NaN"
        )
