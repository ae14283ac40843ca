"""What a tensor of a release must hold, row by row, computed from the source's bytes.

Each expectation reads its source tensor once, from the first row to the last, and hashes it on the way. The digest then
shows whether the source is the one that the manifest records. `repacks.py` has the expectations for values that other
blocks hold, `by_row.py` those for a scale for each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from flagrelease.formats.formats import FP4, FP8, SCALE_RULE, Format
from flagrelease.verify.decoder import E4M3_NAN, U8, VALUES, are_safe, count_bad, scale_values, to_bf16
from flagrelease.verify.gather import GatheredTensor

BF16_EXPONENT = np.uint16(0x7F80)
Rows = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Expectation(Protocol):
    """Rows that a release tensor must hold. `row_multiple`: where row ranges may begin."""

    row_multiple: int = 1

    def rows(self, start: int, stop: int) -> Rows:
        """The expected bytes of rows [start, stop), as bytes or as 16-bit elements."""
        ...

    def misfit(self, tensor: GatheredTensor) -> str | None:
        """Why `tensor` cannot even be compared with these rows; None if it can."""
        return None

    def broken(self, row: int, element: U8) -> str:
        """The rule that the bytes of an element of `row` break, where they are not the expected ones."""
        ...

    def faults(self) -> Iterator[str]:
        """Rules that the source itself breaks, so that no release of it can be right. Call this after the last row."""
        yield from ()


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


class Copied(Expectation):
    """The source's own bytes. NaN codes of FP8 are faults too: no engine survives them."""

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

    def misfit(self, tensor: GatheredTensor) -> str | None:
        """See `Expectation`."""
        return copy_misfit(tensor, self._source.tensor)

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return "is not the source's bytes"

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        if self._nans:
            yield f"{self._nans} codes of {self._source.tensor.name!r} in the source are NaN"


class CopiedScale(Expectation):
    """The source's own scales, which must be finite and not negative."""

    def __init__(self, source: HashedTensor) -> None:
        """Expect what `source` holds."""
        self._source = source
        self._bad = 0

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        rows = self._source.read(start, stop)
        self._bad += count_bad(scale_values(rows, self._source.tensor.dtype))
        return rows

    def misfit(self, tensor: GatheredTensor) -> str | None:
        """See `Expectation`."""
        return copy_misfit(tensor, self._source.tensor)

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return "is not the source's bytes"

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from bad_scales(self._source.tensor.name, self._bad)


def copy_misfit(tensor: GatheredTensor, source: GatheredTensor) -> str | None:
    """Why a tensor is no copy of its source by dtype and shape. An mp release spells packed FP4 as F4."""
    same = tensor.dtype == source.dtype or (tensor.dtype == "F4" and source.dtype in FP4.weight_dtypes)
    if same and (tensor.rows, tensor.row_bytes) == (source.rows, source.row_bytes):
        return None
    return f"is {tensor.dtype} {list(tensor.shape)}, a copy of {source.dtype} {list(source.shape)} is not that"


def bad_scales(name: str, count: int) -> Iterator[str]:
    """A sentence about `count` scales of the source tensor `name` that are no scales, if there are any."""
    if count:
        yield f"{count} scales of {name!r} in the source are NaN, infinite or negative; {SCALE_RULE}"


class Decoded(Expectation):
    """BF16: codes of the source times its scales, rounded once to nearest even."""

    def __init__(self, source: HashedTensor, scale: HashedTensor, fmt: Format, block: tuple[int, int]) -> None:
        """`source` holds codes of `fmt`, `scale` one scale for each `block` (rows, elements)."""
        self._source = source
        self._values = VALUES[fmt.name]
        self._block = block
        self._scales = scale_values(scale.read_all(), scale.tensor.dtype)
        self._scale_name = scale.tensor.name
        self._infinite = 0
        self._surely_finite = fmt is FP4 and are_safe(self._scales)  # FP4 has no NaN
        self.rounded = 0
        self.row_multiple = block[0]

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        codes = self._source.read(start, stop)
        scales = self._scales[start // self._block[0] : -(-stop // self._block[0])]
        bits, rounded = to_bf16(self._values(codes), scales, self._block)
        self.rounded += rounded
        if not self._surely_finite:
            self._infinite += int(np.count_nonzero((bits & BF16_EXPONENT) == BF16_EXPONENT))
        return bits

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return "is not code times scale of the source, rounded once to BF16"

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from bad_scales(self._scale_name, count_bad(self._scales))
        if self._infinite:
            yield f"{self._infinite} elements of the source are NaN, or beyond the range of BF16"
