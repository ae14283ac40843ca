"""Engram tables of DeepSeek-V4.1: E4M3 with an E8M0 scale for each 32 elements of a row, checked by rows.

The scales of a table are gigabytes, so they are read with the rows that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flagrelease.verify.decoder import count_bad, fp8_values, scale_values, to_bf16
from flagrelease.verify.expectations import BF16_EXPONENT, Expectation, HashedTensor, Rows, bad_scales
from flagrelease.verify.gather import Bytes, GatheredTensor

GROUP = 32  # elements of a row that share a scale
_ONE = 127  # the E8M0 code of 1


class DecodedTable(Expectation):
    """BF16: each code times the scale of its 32 elements, rounded once to nearest even."""

    def __init__(self, codes: HashedTensor, scale: HashedTensor) -> None:
        """Neither is read before rows are asked for."""
        self._codes, self._scale = codes, scale
        self._bad = self._infinite = 0
        self.rounded = 0

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        values = fp8_values(self._codes.read(start, stop))
        scales = scale_values(self._scale.read(start, stop), self._scale.tensor.dtype)
        self._bad += count_bad(scales)
        bits, rounded = to_bf16(values, scales, (1, GROUP))
        self.rounded += rounded
        self._infinite += int(np.count_nonzero((bits & BF16_EXPONENT) == BF16_EXPONENT))
        return bits

    def broken(self, row: int, element: Bytes) -> str:
        """See `Expectation`."""
        return "is not code times scale of the source, rounded once to BF16"

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from bad_scales(self._scale.tensor.name, self._bad)
        if self._infinite:
            yield f"{self._infinite} elements of the source are NaN, or beyond the range of BF16"


def wrong_filling(tensor: GatheredTensor) -> Iterator[tuple[str, str]]:
    """File and rule of each part whose rows behind the last one of the table are not what fills up a rank.

    DeepSeek's converter fills the last ranks up: codes and numbers 0, scales 1.
    """
    wanted = _ONE if tensor.dtype == "F8_E8M0" else 0
    for file, rows in tensor.filling():
        if (rows != wanted).any():
            yield file.name, f"holds rows behind the last of the table that are not all {'1' if wanted else '0'}"
