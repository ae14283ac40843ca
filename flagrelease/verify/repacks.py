"""Expectations of tensors that hold the source's values in other blocks: FP8 tiles from FP4, and MXFP8 groups."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from flagrelease.formats.formats import Format
from flagrelease.once import once
from flagrelease.verify.decoder import (
    E8M0_NAN,
    F64,
    U8,
    e2m1_value,
    nearest_e4m3,
    repacked_codes,
    repacked_scales,
    scale_values,
)
from flagrelease.verify.expectations import Expectation, HashedTensor, Rows, bad_scales
from flagrelease.verify.gather import GatheredTensor

_GROUP = 32  # elements of a row that share one scale of MXFP8
_TILES = "is not the FP8 of the source's FP4 (tile scale: the largest / 2^6; code: the nearest)"


class RepackedScale(Expectation):
    """The scales of FP8 tiles made from FP4 groups: E8M0, or the same powers of two as F32."""

    def __init__(self, scale: HashedTensor, block: tuple[int, int], wide: bool) -> None:
        """`scale` holds the FP4 groups' E8M0 codes; `wide`: the release has F32."""
        self.codes = scale.read_all()
        self._name = scale.tensor.name
        self._wide = wide
        self.tiles = repacked_scales(self.codes, block)

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        tiles = self.tiles[start:stop]
        return widened(tiles) if self._wide else tiles

    def misfit(self, tensor: GatheredTensor) -> str | None:
        """See `Expectation`."""
        wanted = "F32" if self._wide else "F8_E8M0"
        return None if tensor.dtype == wanted else f"has {tensor.dtype} scales, repacked FP4 has {wanted}"

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return _TILES

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from bad_scales(self._name, int(np.count_nonzero(self.codes == E8M0_NAN)))


class Repacked(Expectation):
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

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return _TILES


class WidenedScale(Expectation):
    """The source's E8M0 scales as the F32 of the same value, which is what vLLM reads."""

    def __init__(self, source: HashedTensor) -> None:
        """`source` holds E8M0 codes."""
        self._source = source
        self._bad = 0

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        codes = self._source.read(start, stop)
        self._bad += int(np.count_nonzero(codes == E8M0_NAN))
        return widened(codes)

    def misfit(self, tensor: GatheredTensor) -> str | None:
        """See `Expectation`."""
        return None if tensor.dtype == "F32" else f"has {tensor.dtype} scales, the source's F8_E8M0 become F32"

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return "is not the F32 of the source's E8M0 scale"

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        yield from bad_scales(self._source.tensor.name, self._bad)


def widened(codes: U8) -> U8:
    """E8M0 codes [rows, n] as the bytes of float32 [rows, 4 n]; code 0 is the subnormal 2^-127."""
    return scale_values(codes, "F8_E8M0").astype("<f4").view(np.uint8)


class GroupCodes(Expectation):
    """MXFP8 from FP4: the E4M3 code of each E2M1 value, under the same scale."""

    def __init__(self, source: HashedTensor) -> None:
        """`source` holds packed FP4."""
        self._source = source

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        return _e4m3_pairs().take(self._source.read(start, stop)).view(np.uint8)

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return "is not the E4M3 code of the source's FP4"


@once
def _e4m3_pairs() -> npt.NDArray[np.uint16]:
    """For each byte of FP4 the two E4M3 codes of its values, the low nibble's first; E4M3 holds all eight exactly."""
    codes = [nearest_e4m3(e2m1_value(code & 7)) | (code & 8) << 4 for code in range(16)]
    return np.array([codes[byte & 15] | codes[byte >> 4] << 8 for byte in range(256)], "<u2")


class GroupScales(Expectation):
    """MXFP8: the exponent of the source's scale plus 127, for each 32 elements of a row."""

    def __init__(self, scale: HashedTensor, fmt: Format, block: tuple[int, int], columns: int) -> None:
        """`scale` holds a scale for each `block` (rows, elements) of a weight with `columns`, in `fmt`."""
        self._name = scale.tensor.name
        self._source_format = fmt.name
        self._block, self._groups = block, -(-columns // _GROUP)
        values = scale_values(scale.read_all(), scale.tensor.dtype)
        self._codes, self._bad = _exponents(values)

    def rows(self, start: int, stop: int) -> Rows:
        """See `Expectation`."""
        spread = self._codes[np.arange(start, stop) // self._block[0]]
        return spread.repeat(self._block[1] // _GROUP, axis=1)[:, : self._groups]

    def misfit(self, tensor: GatheredTensor) -> str | None:
        """See `Expectation`."""
        if self._block[1] % _GROUP:
            return f"the source's blocks of {self._block[1]} elements do not divide into groups of {_GROUP}"
        return None

    def broken(self, row: int, element: U8) -> str:
        """See `Expectation`."""
        return f"is not the exponent + 127 of the source's {self._source_format} scale"

    def faults(self) -> Iterator[str]:
        """See `Expectation`."""
        if self._bad:
            rule = "a scale of MXFP8 is a power of two from 2^-127 to 2^127"
            yield f"{self._bad} scales of {self._name!r} in the source are none; {rule}"


def _exponents(values: F64) -> tuple[U8, int]:
    """The E8M0 code of each scale, and how many have none."""
    with np.errstate(invalid="ignore"):
        mantissas, exponents = np.frexp(values)
        codes = exponents.astype(np.int64) + (127 - 1)
    bad = ~((mantissas == 0.5) & (codes >= 0) & (codes < E8M0_NAN))
    return np.where(bad, 0, codes).astype(np.uint8), int(np.count_nonzero(bad))
