"""`Decoder`: what the bytes of a stored format stand for. Each format has one, in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagrelease.formats.formats import Format

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Decoder:
    """What the bytes of a format stand for.

    Attributes:
        name: of the format.
        values: float64 [256, n]: the n elements that each byte value packs, first element first.
        largest: the largest finite magnitude, which encoding maps a block's maximum below.
        nan_codes: bool [256]: which byte values hold a NaN.
    """

    name: str
    values: F64
    largest: float
    nan_codes: NDArray[np.bool_]

    @property
    def elements_per_byte(self) -> int:
        """1 for FP8, 2 for FP4."""
        return int(self.values.shape[1])


def decoder_of(fmt: Format, values: F64) -> Decoder:
    """The decoder of a declared format. `values` (float64 [256, n]) has the n elements of each byte, NaN included."""
    return Decoder(fmt.name, values, float(np.nanmax(values)), np.asarray(np.isnan(values).any(axis=1)))
