"""One job: read a source tensor in chunks of rows, make its products, hand the bytes to the files they belong to.

Memory is a few chunks a worker. Only a scale is held whole: it is at most 1/16 of its weight's bytes and, in
DeepSeek-V4, under a megabyte. The scales of V4.1's Engram tables are streamed too (`engram.py`).
"""

from __future__ import annotations

import numpy as np
from blake3 import blake3

from flagrelease.convert.codecs.lookup import Lookup
from flagrelease.convert.codecs.scales import scale_storage
from flagrelease.convert.planning.jobs import Job, Piece
from flagrelease.convert.planning.parts import Role
from flagrelease.convert.planning.target import Action
from flagrelease.convert.running.blank import is_zero, must_hold_values, refuse_zero
from flagrelease.convert.running.chunks import Reader, chunks_of
from flagrelease.convert.running.engram import fill_up, stream_table
from flagrelease.convert.running.faults import require_numbers, require_scales
from flagrelease.convert.running.journal import TensorResult
from flagrelease.convert.running.maker import Maker, Sink
from flagrelease.convert.running.makers import make_maker
from flagrelease.formats.formats import Format
from flagrelease.model.stored import StoredWeight
from flagrelease.model.tensors import Storage
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.manifest import ElementCounts


def run_job(job: Job, read: Reader, sink: Sink, lookup: Lookup, options: ConvertSpec) -> list[TensorResult]:
    """Stream one tensor through; return what was learned of it, one result a product; nothing, if it reads only rows.

    Raises:
        CheckpointError: a NaN code, a scale that is NaN, infinite or negative, or, where `options` do not allow it,
            an FP4 element that FP8 cannot hold, or a weight or scale whose bytes are all zero.
    """
    if job.tensor.format is None:
        return _copy_plain(job, read, sink, options)
    if job.tensor.spec.storage is Storage.TABLE:
        return stream_table(job, job.tensor.format, read, sink, lookup, options)
    return _stream_quantised(job, job.tensor.format, read, sink, lookup, options)


def _copy_plain(job: Job, read: Reader, sink: Sink, options: ConvertSpec) -> list[TensorResult]:
    weight = job.tensor.weight
    (product,) = job.products
    digest = blake3()
    row_bytes, chunks = chunks_of(weight, 1, 1, job.rows)
    blank = job.rows is None and must_hold_values(job.tensor)
    for row, rows in chunks:
        data = sink.buffer_for(rows * row_bytes, row, row_bytes, product.pieces["weight"])
        read(weight, row * row_bytes, data)
        digest.update(data)
        blank = blank and is_zero(data)
        sink.put(data, row, row_bytes, product.pieces["weight"])
    if blank:
        refuse_zero(weight, options)
    fill_up(product.pieces["weight"], weight.shape[0] if weight.shape else 1, row_bytes, 0, sink)
    if job.rows is not None:
        return []
    own = digest.hexdigest()
    counts = ElementCounts(copied=weight.elements)
    return [
        TensorResult(
            tensor=weight.name, action=Action.COPY, source={weight.name: own}, parts={"weight": own}, counts=counts
        )
    ]


def _stream_quantised(
    job: Job, fmt: Format, read: Reader, sink: Sink, lookup: Lookup, options: ConvertSpec
) -> list[TensorResult]:
    tensor = job.tensor
    assert tensor.scale is not None
    scale = np.empty(tensor.scale.nbytes, dtype=np.uint8)
    read(tensor.scale, 0, scale)
    if is_zero(scale):
        refuse_zero(tensor.scale, options)
    stored = scale.view(scale_storage(tensor.scale.dtype)).reshape(tensor.scale.shape)
    require_scales(tensor.scale, stored)
    makers = [make_maker(product, tensor, stored, lookup, options) for product in job.products]
    copies: tuple[Piece, ...] = sum((maker.product.pieces["weight"] for maker in makers if maker.copies), ())
    weight_digest, blank = blake3(), job.rows is None
    row_bytes, chunks = chunks_of(tensor.weight, tensor.block[0], max(maker.width for maker in makers), job.rows)
    for row, rows in chunks:
        codes = sink.buffer_for(rows * row_bytes, row, row_bytes, copies)
        read(tensor.weight, row * row_bytes, codes)
        weight_digest.update(codes)
        blank = blank and is_zero(codes)
        matrix = codes.reshape(rows, row_bytes)
        require_numbers(tensor, fmt, matrix, row)
        for maker in makers:
            if not maker.copies:
                maker.emit(matrix, row, sink)
        if copies:
            sink.put(codes, row, row_bytes, copies)
        else:
            sink.drop(codes)
    if blank:
        refuse_zero(tensor.weight, options)
    source = {tensor.weight.name: weight_digest.hexdigest(), tensor.scale.name: blake3(scale).hexdigest()}
    results = [_finish(maker, tensor, source, sink) for maker in makers]
    return results if job.rows is None else []


def _finish(maker: Maker, tensor: StoredWeight, source: dict[str, str], sink: Sink) -> TensorResult:
    """Send the parts beside the weight, and say what was learned."""
    loss = maker.loss()
    parts: dict[Role, str] = {"weight": maker.digest() or source[tensor.weight.name]}
    for role, matrix in maker.others().items():
        data = sink.buffer(matrix.nbytes)
        np.copyto(data, np.ascontiguousarray(matrix).view(np.uint8).reshape(-1))
        parts[role] = blake3(data).hexdigest()
        sink.put(data, 0, matrix.shape[1] * matrix.itemsize, maker.product.pieces[role])
    return TensorResult(
        tensor=tensor.spec.name,
        action=maker.product.action,
        source=source,
        parts=parts,
        counts=maker.counts(np.prod(tensor.spec.shape, dtype=np.int64).item()),
        loss=loss,
    )
