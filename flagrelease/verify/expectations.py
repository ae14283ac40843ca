"""What a tensor of a release must hold, row by row, computed from the source's bytes.

Each expectation reads its source tensor once, from the first row to the last, and hashes it on the way. The digest then
shows whether the source is the one that the manifest records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from flagrelease.formats.formats import FP8, SCALE_RULE, Format
from flagrelease.verify.decoder import (
    E4M3_NAN,
    E8M0_NAN,
    U8,
    VALUES,
    count_bad,
    repacked_codes,
    repacked_scales,
    scale_values,
    to_bf16,
)
from flagrelease.verify.gather import GatheredTensor

_BF16_EXPONENT = np.uint16(0x7F80)
Rows = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Expectation(Protocol):
    """Rows that a release tensor must hold. `row_multiple`: where row ranges may begin."""

    row_multiple: int

    def rows(self, start: int, stop: int) -> Rows:
        """The expected bytes of rows [start, stop), as bytes or as 16-bit elements."""

    def faults(self) -> Iterator[str]:
        """Rules that the source itself breaks, so that no release of it can be right. Call this after the last row."""


class HashedTensor:
    """A source tensor that is read in order and hashed."""

    def __init__(self, tensor: GatheredTensor) -> None:
        """Nothing is read yet."""
        self.tensor = tensor
        self._digest = blake3()

    def read(self, start: int, stop: int) -> U8:
        """Rows [start, stop) as bytes; the ranges of all calls must follow one another."""
        rows = self.tensor.read(start, stop)
        self._digest.update(rows)
        return rows

    def read_all(self) -> U8:
        """All rows as bytes."""
        return self.read(0, self.tensor.rows)

    def digest(self) -> str:
        """BLAKE3 of all that was read, as hex."""
        return self._digest.hexdigest()


class Copied:
    """The source's own bytes. NaN codes of FP8 are faults too: no engine survives them."""

    row_multiple = 1

    def __init__(self, source: HashedTensor) -> None:
        """Expect what `source` holds."""
        self._source = source
        self._nans = 0

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        rows = self._source.read(start, stop)
        if self._source.tensor.dtype in FP8.weight_dtypes:
            self._nans += int(np.count_nonzero((rows & E4M3_NAN) == E4M3_NAN))
        return rows

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        if self._nans:
            yield f"{self._nans} codes of {self._source.tensor.name!r} in the source are NaN"


class CopiedScale:
    """The source's own scales, which must be finite and not negative."""

    row_multiple = 1

    def __init__(self, source: HashedTensor) -> None:
        """Expect what `source` holds."""
        self._source = source
        self._bad = 0

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        rows = self._source.read(start, stop)
        self._bad += count_bad(scale_values(rows, self._source.tensor.dtype))
        return rows

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from _bad_scales(self._source.tensor.name, self._bad)


def _bad_scales(name: str, count: int) -> Iterator[str]:
    if count:
        yield f"{count} scales of {name!r} in the source are NaN, infinite or negative; {SCALE_RULE}"


class Decoded:
    """BF16: codes of the source times its scales, rounded once to nearest even."""

    def __init__(self, source: HashedTensor, scale: HashedTensor, fmt: Format, block: tuple[int, int]) -> None:
        """`source` holds codes of `fmt`, `scale` one scale for each `block` (rows, elements)."""
        self._source = source
        self._values = VALUES[fmt.name]
        self._block = block
        self._scales = scale_values(scale.read_all(), scale.tensor.dtype)
        self._scale_name = scale.tensor.name
        self._infinite = 0
        self.rounded = 0
        self.row_multiple = block[0]

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        codes = self._source.read(start, stop)
        scales = self._scales[start // self._block[0] : -(-stop // self._block[0])]
        bits, rounded = to_bf16(self._values(codes), scales, self._block)
        self.rounded += rounded
        self._infinite += int(np.count_nonzero((bits & _BF16_EXPONENT) == _BF16_EXPONENT))
        return bits

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from _bad_scales(self._scale_name, count_bad(self._scales))
        if self._infinite:
            yield f"{self._infinite} elements of the source are NaN, or beyond the range of BF16"


class RepackedScale:
    """The E8M0 scales of FP8 tiles made from FP4 groups."""

    row_multiple = 1

    def __init__(self, scale: HashedTensor, block: tuple[int, int]) -> None:
        """`scale` holds the FP4 groups' E8M0 codes."""
        self.codes = scale.read_all()
        self._name = scale.tensor.name
        self.tiles = repacked_scales(self.codes, block)

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        return self.tiles[start:stop]

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from _bad_scales(self._name, int(np.count_nonzero(self.codes == E8M0_NAN)))


class Repacked:
    """FP8 codes nearest to the source's FP4 under the tiles' scales."""

    def __init__(self, source: HashedTensor, scale: RepackedScale, block: tuple[int, int]) -> None:
        """`block`: rows and columns of a tile."""
        self._source = source
        self._scale = scale
        self._block = block
        self.row_multiple = block[0]
        self.lost = 0

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        tiles = self._scale.tiles[start // self._block[0] : -(-stop // self._block[0])]
        packed = self._source.read(start, stop)
        codes, lost = repacked_codes(packed, self._scale.codes[start:stop], tiles, self._block)
        self.lost += lost
        return codes

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from ()
