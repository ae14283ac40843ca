"""The makers of every action: codes copied, or looked up in a table. Scales by row have a file of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.decoders import DECODERS
from flagrelease.convert.codecs.lookup import Index, Lookup, count_lost
from flagrelease.convert.codecs.mxfp8 import GROUP, fp4_as_e4m3, spread_scales
from flagrelease.convert.codecs.repack import repack_scales, repack_tables
from flagrelease.convert.codecs.scales import e8m0_values, exponents_of, scale_values
from flagrelease.convert.codecs.tables import Tables, bf16_tables, e8m0_tables, inexact_possible
from flagrelease.convert.planning.jobs import Product
from flagrelease.convert.planning.parts import Role
from flagrelease.convert.planning.target import Action
from flagrelease.convert.running.faults import require_finite
from flagrelease.convert.running.maker import Maker, Sink
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP4
from flagrelease.model.stored import StoredWeight
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.manifest import ElementCounts, LossRecord


def make_maker(
    product: Product, tensor: StoredWeight, scale: NDArray[Any], lookup: Lookup, options: ConvertSpec
) -> Maker:
    """The maker of one product. `scale` holds the stored scales [blocks of rows, blocks of columns], checked."""
    action = product.action
    if action in (Action.INT8, Action.INT8_BF16, Action.FP8_CHANNEL):
        from flagrelease.convert.running.by_row import ByRow  # its loops need numba, which takes a while to load

        return ByRow(product, tensor, scale, options)
    if action in (Action.COPY, Action.WIDEN) or (action is Action.MXFP8 and tensor.format is not FP4):
        return Copied(product, tensor, scale)
    return LookedUp(product, tensor, scale, lookup, options)


class Copied:
    """The source's codes; the scale as it is, or spelt in another way."""

    width, copies = 1, True

    def __init__(self, product: Product, tensor: StoredWeight, scale: NDArray[Any]) -> None:
        """Raises CheckpointError: MXFP8 cannot spell the scales."""
        self.product = product
        if product.action is Action.WIDEN:
            self._scale = e8m0_values()[scale].astype(np.float32)
        elif product.action is Action.MXFP8:
            self._scale = _exponent_bytes(tensor, scale)
        else:
            self._scale = scale

    def emit(self, codes: U8, row: int, sink: Sink) -> None:
        """See `Maker`: never called."""
        raise AssertionError("copied codes are sent as they were read")

    def others(self) -> dict[Role, NDArray[Any]]:
        """See `Maker`."""
        return {"scale": self._scale}

    def digest(self) -> str | None:
        """See `Maker`."""
        return None

    def counts(self, elements: int) -> ElementCounts:
        """See `Maker`."""
        return ElementCounts(copied=elements)

    def loss(self) -> LossRecord | None:
        """See `Maker`."""
        return None


class LookedUp:
    """Every stored byte becomes what a table says, chosen by its block: BF16, or FP4 as FP8."""

    copies = False

    def __init__(
        self, product: Product, tensor: StoredWeight, scale: NDArray[Any], lookup: Lookup, options: ConvertSpec
    ) -> None:
        """Choose the tables."""
        assert tensor.format is not None
        self.product = product
        self._tensor, self._lookup, self._options = tensor, lookup, options
        self._scale: NDArray[Any] | None = None
        self._block = tensor.block[0], tensor.block[1] // tensor.format.elements_per_byte
        self._tables, self._index = self._choose(scale)
        self.width = self._tables.entries.itemsize
        self._counting = inexact_possible(self._tables, self._index)
        self._digest: Any = blake3()
        self._inexact = 0

    def _choose(self, scale: NDArray[Any]) -> tuple[Tables, Index]:
        assert self._tensor.format is not None
        assert self._tensor.scale is not None
        action = self.product.action
        if action is Action.MXFP8:
            self._scale = scale
            return fp4_as_e4m3(), np.zeros_like(scale)
        if action in (Action.REPACK, Action.REPACK_F32):
            index, tiles = repack_scales(scale, self._tensor.tile)
            self._scale = tiles if action is Action.REPACK else e8m0_values()[tiles].astype(np.float32)
            return repack_tables(), index
        decoder = DECODERS[self._tensor.format.name]
        if self._tensor.scale.dtype == "F8_E8M0":
            return e8m0_tables(decoder), scale
        values, inverse = np.unique(scale_values(scale, self._tensor.scale.dtype), return_inverse=True)
        return bf16_tables(decoder, values), inverse.reshape(scale.shape).astype(np.int32)

    def emit(self, codes: U8, row: int, sink: Sink) -> None:
        """See `Maker`."""
        first = row // self._block[0]
        index = self._index[first : first + -(-len(codes) // self._block[0])]
        decoding = self.product.action is Action.DECODE
        if self._counting:
            lost = count_lost(codes, index, self._block, self._tables)
            self._inexact += lost
            if lost and not decoding and self._options.lossy_repack != "allow":
                tile = "x".join(map(str, self._tensor.tile))
                raise CheckpointError(
                    f"{self._tensor.weight.file}: tensor {self._tensor.spec.name!r}: rows {row} to "
                    f"{row + len(codes) - 1} hold {lost} FP4 elements that FP8 with a scale per {tile} cannot hold "
                    f"exactly; a recipe with 'lossy_repack: allow' rounds and counts them"
                )
        row_bytes, pieces = codes.shape[1] * self.width, self.product.pieces["weight"]
        out = sink.buffer_for(codes.size * self.width, row, row_bytes, pieces)
        self._lookup(codes, index, self._block, self._tables, out.view(self._tables.entries.dtype).reshape(codes.shape))
        if self._counting and decoding:
            require_finite(self._tensor, out, codes.shape, row)
        self._digest.update(out)
        sink.put(out, row, row_bytes, pieces)

    def others(self) -> dict[Role, NDArray[Any]]:
        """See `Maker`."""
        return {} if self._scale is None else {"scale": self._scale}

    def digest(self) -> str | None:
        """See `Maker`."""
        return str(self._digest.hexdigest())

    def counts(self, elements: int) -> ElementCounts:
        """See `Maker`."""
        held = elements - self._inexact
        if self.product.action is Action.DECODE:
            return ElementCounts(exact=held, rounded=self._inexact)
        return ElementCounts(repacked=held, lost=self._inexact)

    def loss(self) -> LossRecord | None:
        """See `Maker`."""
        return None


def _exponent_bytes(tensor: StoredWeight, scale: NDArray[Any]) -> U8:
    """The scales of an FP8 weight as MXFP8 spells them.

    Raises:
        CheckpointError: a scale is not a power of two from 2^-127 to 2^127, or a block cuts a group of 32.
    """
    assert tensor.scale is not None
    where = f"{tensor.scale.file}: scale {tensor.scale.name!r}"
    exponents = exponents_of(scale_values(scale, tensor.scale.dtype))
    if exponents is None or abs(exponents).max() > 127:
        raise CheckpointError(f"{where}: MXFP8 has powers of two from 2^-127 to 2^127 as scales, and one here is none")
    if tensor.block[1] % GROUP:
        raise CheckpointError(f"{where}: blocks of {list(tensor.block)} cut the groups of {GROUP} that MXFP8 has")
    rows, columns = tensor.spec.shape
    return spread_scales(exponents, tensor.block, (rows, columns))
