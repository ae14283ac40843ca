"""Weights with a new scale for each row, and what that cost them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.decoders import DECODERS
from flagrelease.convert.codecs.rows import RowFigures, RowRule, quantise_rows
from flagrelease.convert.codecs.scales import exponents_of, scale_values
from flagrelease.convert.planning.jobs import Product
from flagrelease.convert.planning.parts import Role
from flagrelease.convert.planning.target import Action
from flagrelease.convert.running.maker import Sink
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP8_CHANNEL, INT8
from flagrelease.model.stored import StoredWeight
from flagrelease.records.convert_spec import ConvertSpec, LossLimit
from flagrelease.records.manifest import ElementCounts, LossRecord


class ByRow:
    """A new scale for each row, and codes under it. A chunk holds whole rows, so memory stays that of a chunk."""

    copies = False

    def __init__(self, product: Product, tensor: StoredWeight, scale: NDArray[Any], options: ConvertSpec) -> None:
        """Choose the rule of the scales."""
        assert tensor.format is not None
        assert tensor.scale is not None
        self.product = product
        self.width = tensor.format.elements_per_byte
        self._tensor, self._options = tensor, options
        self._decoder = DECODERS[tensor.format.name]
        self._block = tensor.block[0], tensor.block[1] // self.width
        self._scales = scale_values(scale, tensor.scale.dtype)
        self._exponents = exponents_of(self._scales)
        self._rule = (
            RowRule(FP8_CHANNEL, options.channel_scale, bf16=False)
            if product.action is Action.FP8_CHANNEL
            else RowRule(INT8, options.int8_scale, bf16=product.action is Action.INT8_BF16)
        )
        self._figures = RowFigures.of(tensor.spec.shape[0])
        self._digest: Any = blake3()

    def emit(self, codes: U8, row: int, sink: Sink) -> None:
        """See `Maker`."""
        blocks = slice(row // self._block[0], -(-(row + len(codes)) // self._block[0]))
        exponents = None if self._exponents is None else self._exponents[blocks]
        row_bytes, pieces = codes.shape[1] * self.width, self.product.pieces["weight"]
        out = sink.buffer_for(codes.size * self.width, row, row_bytes, pieces)
        quantise_rows(
            codes, self._decoder, self._scales[blocks], exponents, self._block, self._rule, self._figures, row, out
        )
        rows = slice(row, row + len(codes))
        if not np.isfinite(self._figures.scale[rows]).all():
            bad = row + int(np.argmin(np.isfinite(self._figures.scale[rows])))
            raise CheckpointError(
                f"{self._tensor.weight.file}: tensor {self._tensor.spec.name!r}: row {bad} needs a scale beyond float32"
            )
        if self._options.lossy_repack == "refuse" and (lost := int(self._figures.inexact[rows].sum())):
            raise CheckpointError(
                f"{self._tensor.weight.file}: tensor {self._tensor.spec.name!r}: rows {row} to {row + len(codes) - 1} "
                f"hold {lost} elements that {self._rule.format.name} with a scale for each row cannot hold exactly; a "
                f"recipe with 'lossy_repack: allow', or with a limit, rounds and counts them"
            )
        self._digest.update(out)
        sink.put(out, row, row_bytes, pieces)

    def others(self) -> dict[Role, NDArray[Any]]:
        """See `Maker`."""
        made: dict[Role, NDArray[Any]] = {"scale": self._figures.scale[:, None]}
        if "offset" in self.product.pieces:
            made["offset"] = np.zeros_like(made["scale"])
        return made

    def digest(self) -> str | None:
        """See `Maker`."""
        return str(self._digest.hexdigest())

    def counts(self, elements: int) -> ElementCounts:
        """See `Maker`."""
        lost = int(self._figures.inexact.sum())
        return ElementCounts(repacked=elements - lost, lost=lost)

    def loss(self) -> LossRecord | None:
        """See `Maker`.

        Raises:
            CheckpointError: more rows are inexact than the recipe's limit allows.
        """
        loss, limit = _loss(self._figures, self._tensor.spec.shape[1]), self._options.lossy_repack
        if loss is not None and isinstance(limit, LossLimit):
            share = (loss.rows - loss.exact_rows) / loss.rows  # not 1 - exact / rows, which is above 0.3 for 3 of 10
            if share > limit.largest_share_of_inexact_rows:
                raise CheckpointError(
                    f"{self._tensor.weight.file}: tensor {self._tensor.spec.name!r}: {loss.rows - loss.exact_rows} of "
                    f"{loss.rows} rows hold an element that {self._rule.format.name} cannot hold exactly, a share of "
                    f"{share:.4g}; the recipe allows {limit.largest_share_of_inexact_rows:g}"
                )
        return loss


def _loss(figures: RowFigures, columns: int) -> LossRecord | None:
    if not figures.inexact.any():
        return None
    rows = len(figures.inexact)
    return LossRecord(
        rows=rows,
        exact_rows=int((figures.inexact == 0).sum()),
        elements=rows * columns,
        exact_elements=rows * columns - int(figures.inexact.sum()),
        largest_error=float(figures.largest_error.max() / figures.largest.max()),
        rms_error=math.sqrt(math.fsum(figures.squared_error) / math.fsum(figures.squares)),
    )
