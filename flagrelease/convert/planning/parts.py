"""`Part`: a stored tensor of a release, as a matrix of bytes that layouts cut."""

from __future__ import annotations

from typing import Literal, NamedTuple

from flagrelease.convert.planning.layouts import Region, matrix_shape
from flagrelease.convert.planning.target import Action, Target
from flagrelease.errors import UsageError
from flagrelease.formats.formats import (
    FP8,
    FP8_CHANNEL,
    INT8,
    MXFP8,
    block_counts,
    offset_name,
    row_scale_name,
    scale_names,
)
from flagrelease.model.stored import StoredWeight
from flagrelease.model.tensors import TensorSpec
from flagrelease.shard.header import DTYPE_BITS, tensor_bytes

Role = Literal["weight", "scale", "offset"]


class Part(NamedTuple):
    """One stored tensor that an action makes of a source tensor: the weight, or its scale.

    A tuple, as a plan of V4-Pro has 200,000 of them and a frozen dataclass takes four times as long to make.

    Attributes:
        name, dtype, shape: as in the release's headers, for the whole tensor.
        role: whether it is the weight, its scale or its zero points.
        block: (rows, elements) of the weight that one entry covers: (1, 1) for a weight, the block for a scale, (1, 2)
            for FP4 whose header counts bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role = "weight"
    block: tuple[int, int] = (1, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return tensor_bytes(self.dtype, self.shape)

    @property
    def alignment(self) -> int:
        """Bytes of an element, 1 for packed ones."""
        return max(1, DTYPE_BITS[self.dtype] // 8)


class Cut(NamedTuple):
    """A rectangle of a part's byte matrix: half-open rows and byte columns."""

    row0: int
    row1: int
    byte0: int
    byte1: int

    @property
    def nbytes(self) -> int:
        """Bytes of the rectangle."""
        return (self.row1 - self.row0) * (self.byte1 - self.byte0)

    def shape(self, part: Part) -> tuple[int, ...]:
        """Its shape in a header."""
        rows = self.row1 - self.row0
        if len(part.shape) < 2:
            return (rows,)
        return rows, (self.byte1 - self.byte0) * 8 // DTYPE_BITS[part.dtype]


def parts_of(tensor: StoredWeight, action: Action, target: Target) -> tuple[Part, ...]:
    """What `action` makes of `tensor` in a release: the weight, then its scale and zero points if it has them."""
    spec, weight, scale = tensor.spec, tensor.weight, tensor.scale
    if tensor.format is None:
        return (Part(spec.name, weight.dtype, weight.shape),)
    if action is Action.DECODE:
        return (Part(spec.name, "BF16", spec.shape),)
    assert scale is not None
    if action in (Action.INT8, Action.INT8_BF16, Action.FP8_CHANNEL, Action.MXFP8):
        return _row_parts(tensor, action, target)
    scale_name = scale.name if target.mp is None else scale_names(spec.name)[0]
    if action in (Action.REPACK, Action.REPACK_F32):
        blocks, dtype = block_counts(spec.shape, tensor.tile), "F8_E8M0" if action is Action.REPACK else "F32"
        return Part(spec.name, FP8.weight_dtypes[0], spec.shape), Part(scale_name, dtype, blocks, "scale", tensor.tile)
    dtype = "F32" if action is Action.WIDEN else scale.dtype
    kept_scale = Part(scale_name, dtype, scale.shape, "scale", tensor.block)
    if tensor.format.elements_per_byte == 2 and target.mp is not None:
        return Part(spec.name, "F4", spec.shape), kept_scale
    per_entry = tensor.format.elements_per_entry(weight.dtype)
    return Part(spec.name, weight.dtype, weight.shape, "weight", (1, per_entry)), kept_scale


def with_copy(parts: tuple[Part, ...], name: str | None) -> tuple[Part, ...]:
    """The parts of a plain tensor, and once more under `name`, if it is given."""
    return parts if name is None else (*parts, parts[0]._replace(name=name))


def _row_parts(tensor: StoredWeight, action: Action, target: Target) -> tuple[Part, ...]:
    """The parts of a weight with scales along its rows, as compressed-tensors and ModelSlim name them."""
    name, shape = tensor.spec.name, tensor.spec.shape
    fmt = {Action.FP8_CHANNEL: FP8_CHANNEL, Action.MXFP8: MXFP8}.get(action, INT8)
    block = fmt.block(None, shape[-1])
    assert block is not None, "fixed by the format"
    blocks, dtype = block_counts(shape, block), fmt.scale_dtypes[0]
    codes = Part(name, fmt.weight_dtypes[0], shape)
    scale = Part(row_scale_name(name), dtype, blocks, "scale", block)
    if not target.release.offsets:
        return codes, scale
    return codes, scale, Part(offset_name(name), dtype, blocks, "offset", block)


def cut(part: Part, region: Region) -> Cut:
    """The bytes of `part` that belong to a region of the weight, whole blocks only (`require_whole_blocks`)."""
    row_block, col_block = part.block
    _, columns = matrix_shape(part.shape)
    bits = DTYPE_BITS[part.dtype]
    col1 = min(-(-region.col1 // col_block), columns)
    row1 = -(-region.row1 // row_block)  # beyond the part's rows where a rank is filled up
    return Cut(region.row0 // row_block, row1, region.col0 // col_block * bits // 8, col1 * bits // 8)


def require_whole_blocks(part: Part, region: Region, spec: TensorSpec, target: Target) -> None:
    """Refuse a region that would cut a block, whose scale then would belong to two ranks.

    Raises:
        UsageError: with tensor, edge and block.
    """
    rows, cols = matrix_shape(spec.shape)
    for what, edges, size, block in (
        ("row", (region.row0, region.row1), rows, part.block[0]),
        ("column", (region.col0, region.col1), cols, part.block[1]),
    ):
        for edge in edges:
            if edge % block and edge != size:
                raise UsageError(
                    f"target {target}: tensor {spec.name!r} of {list(spec.shape)} would be cut at {what} {edge}, "
                    f"inside a block of {list(part.block)}; use bf16, or fewer ranks"
                )
