"""A scale for each row: INT8 and FP8 codes from FP4 and FP8 weights, with what that costs.

The rules are in `flagrelease.formats.releases`. A row whose source scales are powers of two is first tried under a
power-of-two scale, which is a look-up: the codes of every byte times 2^d are in a table for each d. If that is exact,
the row is done. Otherwise the row is decoded to float64, which holds every code times scale exactly, and quantised in
a loop.

Sums of squared errors run in float64 in the order of the elements, and no fast-math is allowed, so that the result is
the same on every machine and with any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import F64, U8, Decoder
from flagrelease.convert.codecs.fp8 import FP8_DECODER
from flagrelease.convert.codecs.quantise import encode_values
from flagrelease.convert.codecs.row_loops import E4M3_LARGEST, HIGHEST, INT8_LARGEST, LOWEST, RULES, quantise
from flagrelease.convert.codecs.tables import Tables, count_inexact, pack
from flagrelease.formats.formats import FP8_CHANNEL, INT8, Format
from flagrelease.once import once


@dataclass(frozen=True, eq=False)
class RowRule:
    """What rows become: the format of the codes, the rule of the scale, and whether BF16 must hold the scale."""

    format: Format
    rule: str
    bf16: bool

    @property
    def largest(self) -> float:
        """The largest magnitude of a code."""
        return INT8_LARGEST if self.format is INT8 else E4M3_LARGEST


@dataclass(eq=False)
class RowFigures:
    """For each row of a weight: its scale, and what it lost. Rows are filled in any order."""

    scale: NDArray[np.float32]
    inexact: NDArray[np.int64]
    squared_error: F64
    squares: F64
    largest_error: F64
    largest: F64

    @classmethod
    def of(cls, rows: int) -> RowFigures:
        """Room for `rows` rows."""
        sums = (np.zeros(rows) for _ in range(4))
        return cls(np.zeros(rows, dtype=np.float32), np.zeros(rows, dtype=np.int64), *sums)

    def parts(self) -> tuple[NDArray[Any], ...]:
        """The arrays, in the order of the fields."""
        return self.scale, self.inexact, self.squared_error, self.squares, self.largest_error, self.largest


def quantise_rows(
    codes: U8,
    decoder: Decoder,
    scales: F64,
    exponents: NDArray[np.int32] | None,
    block: tuple[int, int],
    to: RowRule,
    figures: RowFigures,
    row: int,
    out: U8,
) -> None:
    """Quantise whole rows.

    Args:
        codes: bytes [R, C] of the source format that `decoder` decodes.
        scales: float64 [ceil(R / block[0]), ceil(C / block[1])], finite and not negative.
        exponents: log2 of `scales`, if all are powers of two.
        block: rows and bytes that share a scale.
        to: what to make.
        figures: filled from row `row` on.
        row: the place of the first row.
        out: bytes [R, C * elements a byte], the codes of `to.format`.
    """
    tables, matrix = _tables(decoder, to.format), out.reshape(len(codes), -1)
    quantise(
        codes,
        np.zeros((1, 1), dtype=np.int32) if exponents is None else exponents,
        exponents is not None,
        scales,
        *block,
        decoder.values,
        _order(decoder),
        np.ascontiguousarray(decoder.values[:128, 0]),
        *_squares(to.format),
        tables.entries,
        tables.inexact,
        ~tables.inexact.any(axis=1),
        to.format is not INT8,
        to.largest,
        RULES.index(to.rule),
        to.bf16,
        matrix,
        matrix.view(tables.entries.dtype),
        *(part[row : row + len(codes)] for part in figures.parts()),
    )


def int8_values() -> F64:
    """The value of each INT8 code, float64 [256]."""
    return np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float64)


@once
def _tables(decoder: Decoder, to: Format) -> Tables:
    """Codes of every byte times 2^d, d from LOWEST to HIGHEST."""
    assert to in (INT8, FP8_CHANNEL)
    exact = decoder.values[None, :, :] * np.ldexp(1.0, np.arange(LOWEST, HIGHEST + 1))[:, None, None]
    if to is INT8:
        finite = np.nan_to_num(exact)
        codes = np.clip(np.rint(finite), -INT8_LARGEST, INT8_LARGEST).astype(np.int8).view(np.uint8)
        return Tables(pack(codes), count_inexact(exact, int8_values()[codes]))
    codes = encode_values(FP8_DECODER, np.nan_to_num(exact))
    return Tables(pack(codes), count_inexact(exact, FP8_DECODER.values[codes, 0]))


@once
def _order(decoder: Decoder) -> U8:
    """For each byte the code of its largest magnitude: codes without their sign are ordered as their values are."""
    codes = np.arange(256, dtype=np.uint8)
    if decoder.elements_per_byte == 1:
        return np.asarray(codes & 0x7F)
    return np.asarray(np.maximum(codes & 7, codes >> 4 & 7))


@once
def _squares(to: Format) -> tuple[NDArray[np.int64], int]:
    """The square of each code as an integer, and the exponent of its unit before squaring."""
    values, unit = (int8_values(), 0) if to is INT8 else (np.nan_to_num(FP8_DECODER.values[:, 0]), -9)
    return np.ldexp(values, -unit).astype(np.int64) ** 2, unit
