"""Expectations of weights with a scale for each row: codes, scales and zero points, and what the rows lost.

The codes come first and are read once: they leave the scales of their rows, which the expectation of the scale tensor
then hands out. Rows are encoded in small pieces, so that memory does not grow with the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from flagrelease.formats.formats import INT8, Format
from flagrelease.records.manifest import LossRecord
from flagrelease.verify.decoder import F64, U8, VALUES, count_bad, multiply, scale_values
from flagrelease.verify.encoder import LARGEST, RowRule, encode_rows, is_bf16, power_of_two_scales
from flagrelease.verify.expectations import Expectation, HashedTensor, Rows, bad_scales

# A megabyte of float64: a handful of such arrays stays in a core's cache.
_ELEMENTS = 1 << 17
_MINUS_128 = 0x80


class RowCodes(Expectation):
    """The codes of rows, and what is known of each row once it was asked for."""

    def __init__(
        self,
        source: HashedTensor,
        scale: HashedTensor,
        fmt: Format,
        block: tuple[int, int],
        shape: tuple[int, ...],
        rule: RowRule,
    ) -> None:
        """Expect what `rule` makes of the source.

        Args:
            source: codes of `fmt`.
            scale: one scale for each `block` (rows, elements).
            fmt, block: of the source.
            shape: the weight's logical shape.
            rule: the release's.
        """
        self._source = source
        self._elements = math.prod(shape)
        self._values = VALUES[fmt.name]
        self._block = block
        self._source_scales = scale_values(scale.read_all(), scale.tensor.dtype)
        self._scale_name = scale.tensor.name
        self.rule = rule
        self._no_numbers = 0
        rows = shape[0]
        self.scales: F64 = np.zeros(rows)
        self.inexact = np.zeros(rows, np.int64)
        self.largest: F64 = np.zeros(rows)
        self._largest_errors: F64 = np.zeros(rows)
        self._squared_errors: F64 = np.zeros(rows)
        self._squares: F64 = np.zeros(rows)

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        stored = self._source.read(start, stop)
        step = max(1, _ELEMENTS * len(self.scales) // self._elements)
        pieces = range(0, stop - start, step)
        return np.concatenate([self._encode(start + first, stored[first : first + step]) for first in pieces])

    def _encode(self, start: int, stored: U8) -> U8:
        x = self._values(stored).astype(np.float64)
        here = slice(start, start + len(x))
        with np.errstate(invalid="ignore"):  # an infinite scale times zero, found below
            multiply(x, self._source_scales[np.arange(here.start, here.stop) // self._block[0]], (1, self._block[1]))
        finite = np.isfinite(x)
        if not finite.all():
            self._no_numbers += int(np.count_nonzero(~finite))
            x[~finite] = 0.0
        encoded = encode_rows(x, self.rule)
        self.scales[here] = encoded.scales
        self.largest[here] = np.abs(x).max(axis=1)
        self._squares[here] = np.einsum("rc,rc->r", x, x)
        inexact = np.count_nonzero(encoded.errors, axis=1)
        if inexact.any():
            self.inexact[here] = inexact
            self._largest_errors[here] = np.abs(encoded.errors).max(axis=1)
            self._squared_errors[here] = np.einsum("rc,rc->r", encoded.errors, encoded.errors)
        return encoded.codes

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        if self.rule.format is INT8 and element[0] == _MINUS_128:
            return "holds code -128, which no rule gives: codes are -127 to 127"
        return f"is not the {self.rule.format.name} code nearest to the source's value under the row's scale"

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from bad_scales(self._scale_name, count_bad(self._source_scales))
        if self._no_numbers:
            yield f"{self._no_numbers} elements of the source are NaN or infinite"
        if beyond := int(np.count_nonzero(np.isinf(self.scales))):
            yield f"{beyond} rows of the source need a scale beyond the largest float32"

    def loss(self) -> LossRecord | None:
        """What all rows together lost; None if nothing. Asked for after the last row."""
        if not self.inexact.any():
            return None
        rows, lost = len(self.inexact), int(self.inexact.sum())
        return LossRecord(
            rows=rows,
            exact_rows=int(np.count_nonzero(self.inexact == 0)),
            elements=self._elements,
            exact_elements=self._elements - lost,
            largest_error=float(self._largest_errors.max() / self.largest.max()),
            rms_error=math.sqrt(math.fsum(self._squared_errors) / math.fsum(self._squares)),
        )


class RowScales(Expectation):
    """The scales that the codes of the rows were made with, as F32."""

    def __init__(self, codes: RowCodes) -> None:
        """All rows of `codes` must have been asked for before the first row of this."""
        self._codes = codes

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        with np.errstate(over="ignore"):  # infinity stays infinity, and is a fault of the source
            return self._codes.scales[start:stop, None].astype("<f4").view(np.uint8)

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`. Says which fault of a converter the scale looks like."""
        codes, found = self._codes, element.view("<f4").astype(np.float64)
        if not 0 < found[0] < np.inf:
            return "is no scale: it must be finite and above zero"
        if codes.rule.bf16 and not is_bf16(found)[0]:
            return "is not a BF16 number, and BF16 is what the loader keeps of it"
        if found[0] in codes.scales[max(0, row - 1) : row + 2]:
            return "is the scale of a neighbouring row"
        power = power_of_two_scales(codes.largest[row : row + 1], LARGEST[codes.rule.format])
        if codes.scales[row] == power[0] and codes.inexact[row] == 0 and np.frexp(found[0])[0] != 0.5:
            return "is no power of two, though one holds the row exactly"
        return f"is not the scale that the rule {codes.rule.scale!r} gives this row"


class ZeroOffsets(Expectation):
    """ModelSlim's zero points: all zero, since the codes are symmetric."""

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        return np.zeros((stop - start, 4), np.uint8)

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return "is a zero point other than 0, and the codes are symmetric"
