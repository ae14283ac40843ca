"""The converter's decoders: what a stored byte means, and every way from one format to another as a table look-up.

A quantised weight is a matrix of bytes and a matrix of scales, one scale for a block. Once the scale of a block is
known, each of the 256 byte values decodes to fixed output bits; so decoding, and repacking FP4 as FP8, is one look-up
a byte in a table chosen by block (`flagrelease.convert.lookup`). `DECODERS` has the values of every declared format.

Definitions: FP8 E4M3FN and FP4 E2M1 as in the OCP 8-bit and Microscaling specifications, E8M0 scale code b = 2^(b-127)
with 255 = NaN. Code 8 of FP4 is -0.0 (the sign bit is kept, so that encoding gives the same byte back); DeepSeek's own
converter writes +0.0 there, which is the same number with other bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagrelease.formats.formats import FP4, FP8, Format

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


def _e4m3_values() -> F64:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6))
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -magnitude, magnitude)[:, None]


def _e2m1_pairs() -> F64:
    code = np.arange(16)
    exponent, mantissa = (code >> 1) & 3, code & 1
    magnitude = np.where(exponent > 0, np.ldexp(1 + mantissa / 2, exponent - 1), mantissa / 2)
    value = np.where(code & 8, -magnitude, magnitude)
    byte = np.arange(256)
    return np.stack([value[byte & 15], value[byte >> 4]], axis=1)  # low nibble first


def e8m0_values() -> F64:
    """The value of each E8M0 scale code, float64 [256]; code 255 is NaN."""
    values = np.ldexp(np.ones(256), np.arange(256) - 127)
    values[255] = np.nan
    return values


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


def _decoder(fmt: Format, values: F64) -> Decoder:
    return Decoder(fmt.name, values, float(np.nanmax(values)), np.asarray(np.isnan(values).any(axis=1)))


FP8_DECODER = _decoder(FP8, _e4m3_values())
FP4_DECODER = _decoder(FP4, _e2m1_pairs())
DECODERS = {decoder.name: decoder for decoder in (FP8_DECODER, FP4_DECODER)}

# dtype -> numpy type of the stored bits of a scale
_SCALE_STORAGE: dict[str, Any] = {"F8_E8M0": np.uint8, "BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def scale_storage(dtype: str) -> Any:
    """The numpy dtype that holds scales of safetensors dtype `dtype` bit by bit."""
    return _SCALE_STORAGE[dtype]


def scale_values(stored: NDArray[Any], dtype: str) -> F64:
    """The float64 values of stored scales, NaN included."""
    if dtype == "F8_E8M0":
        return np.asarray(e8m0_values()[stored])
    floats = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else stored
    with np.errstate(invalid="ignore"):  # numpy warns of a signalling NaN; `work` refuses it
        return floats.astype(np.float64)


@dataclass(frozen=True)
class Tables:
    """Look-up tables: row u serves the blocks whose index is u.

    Attributes:
        entries: uint16 or uint32 [U, 256]: the output bits of a byte (little endian, first element lowest).
        inexact: uint8 [U, 256]: how many elements of the byte the output cannot hold exactly. NaN does not count.
    """

    entries: NDArray[Any]
    inexact: U8


def bf16_tables(decoder: Decoder, scales: F64) -> Tables:
    """Tables that decode to BF16 under `scales` (float64 [U]): value times scale, rounded once, to even."""
    exact = decoder.values[None, :, :] * scales[:, None, None]
    with np.errstate(invalid="ignore"):
        rounded = _round_to_bf16(exact)
    bits = (rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    bits[np.isnan(exact)] = 0x7FC0
    return Tables(pack(bits), count_inexact(exact, rounded))


@cache
def e8m0_tables(decoder: Decoder) -> Tables:
    """`bf16_tables` for all 256 E8M0 codes, so that a stored scale code is its own table index."""
    return bf16_tables(decoder, e8m0_values())


def _round_to_bf16(values: F64) -> F64:
    """Nearest BF16 (8 significant bits, smallest subnormal 2^-133), ties to even; overflow gives infinity."""
    _, exponent = np.frexp(values)
    quantum = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    rounded = np.rint(values / quantum) * quantum
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, values), rounded)


def pack(elements: NDArray[Any]) -> NDArray[Any]:
    """[U, 256, n] elements to [U, 256] integers of n elements each."""
    wide = {1: np.uint8, 2: np.uint16, 4: np.uint32}[elements.shape[2] * elements.itemsize]
    packed: NDArray[Any] = np.ascontiguousarray(elements).view(wide)[:, :, 0]
    return packed


def count_inexact(exact: F64, held: F64) -> U8:
    """How many of the n elements [U, 256, n] of each byte differ from what is held; NaN does not count."""
    return np.asarray(((exact != held) & ~np.isnan(exact)).sum(axis=2), dtype=np.uint8)


def inexact_possible(tables: Tables, index: NDArray[Any]) -> bool:
    """Whether a table between the smallest and the largest of `index` has an inexact entry; else none need counting."""
    return bool(index.size) and bool(tables.inexact[int(index.min()) : int(index.max()) + 1].any())
