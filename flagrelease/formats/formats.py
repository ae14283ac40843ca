"""Quantised formats: what a stored byte means, and every way from one format to another as a table look-up.

A quantised weight is a matrix of bytes and a matrix of scales, one scale for a block. Once the scale of a block is
known, each of the 256 byte values decodes to fixed output bits; so decoding, and repacking FP4 as FP8, is one look-up
a byte in a table chosen by block (`flagrelease.convert.lookup`). A format is one entry of `FORMATS`: the values its
bytes stand for, the block that shares a scale, and the dtypes it is stored in.

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
class Format:
    """A quantised format.

    Attributes:
        name: the name in reports and config.json.
        values: float64 [256, n]: the n elements that each byte value packs, first element first.
        weight_dtypes: safetensors dtypes the bytes are stored as.
        scale_dtypes: safetensors dtypes its scales may have.
        fixed_block: (rows, elements along the input) that share a scale; None: `weight_block_size` of the config.
        largest: the largest finite magnitude, which encoding maps a block's maximum below.
    """

    name: str
    values: F64
    weight_dtypes: frozenset[str]
    scale_dtypes: frozenset[str]
    fixed_block: tuple[int, int] | None
    largest: float

    @property
    def elements_per_byte(self) -> int:
        """1 for FP8, 2 for FP4."""
        return int(self.values.shape[1])

    @property
    def nan_codes(self) -> NDArray[np.bool_]:
        """bool [256]: which byte values hold a NaN."""
        return np.asarray(np.isnan(self.values).any(axis=1))

    def block(self, weight_block_size: tuple[int, int] | None) -> tuple[int, int] | None:
        """(rows, elements) of a block under this config, None if the config does not say and must."""
        return self.fixed_block or weight_block_size


FP8 = Format("fp8", _e4m3_values(), frozenset({"F8_E4M3"}), frozenset({"F8_E8M0", "F32", "BF16", "F16"}), None, 448.0)
FP4 = Format("fp4", _e2m1_pairs(), frozenset({"I8", "U8"}), frozenset({"F8_E8M0"}), (1, 32), 6.0)
FORMATS = (FP8, FP4)

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


def bf16_tables(fmt: Format, scales: F64) -> Tables:
    """Tables that decode `fmt` to BF16 under `scales` (float64 [U]): value times scale, rounded once, to even."""
    exact = fmt.values[None, :, :] * scales[:, None, None]
    with np.errstate(invalid="ignore"):
        rounded = _round_to_bf16(exact)
    bits = (rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    bits[np.isnan(exact)] = 0x7FC0
    return Tables(_pack(bits), _inexact(exact, rounded))


def fp8_tables(fmt: Format, ratios: F64) -> Tables:
    """Tables that repack `fmt` as E4M3: value times ratio (old scale over new scale), rounded once, to even."""
    exact = fmt.values[None, :, :] * ratios[:, None, None]
    codes = encode_values(FP8, exact)
    return Tables(_pack(codes), _inexact(exact, FP8.values[codes, 0]))


@cache
def e8m0_tables(fmt: Format) -> Tables:
    """`bf16_tables` for all 256 E8M0 codes, so that a stored scale code is its own table index."""
    return bf16_tables(fmt, e8m0_values())


def _round_to_bf16(values: F64) -> F64:
    """Nearest BF16 (8 significant bits, smallest subnormal 2^-133), ties to even; overflow gives infinity."""
    _, exponent = np.frexp(values)
    quantum = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    rounded = np.rint(values / quantum) * quantum
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, values), rounded)


def _pack(elements: NDArray[Any]) -> NDArray[Any]:
    """[U, 256, n] elements to [U, 256] integers of n elements each."""
    wide = {1: np.uint8, 2: np.uint16, 4: np.uint32}[elements.shape[2] * elements.itemsize]
    packed: NDArray[Any] = np.ascontiguousarray(elements).view(wide)[:, :, 0]
    return packed


def _inexact(exact: F64, held: F64) -> U8:
    return np.asarray(((exact != held) & ~np.isnan(exact)).sum(axis=2), dtype=np.uint8)


def inexact_possible(tables: Tables, index: NDArray[Any]) -> bool:
    """Whether a table between the smallest and the largest of `index` has an inexact entry; else none need counting."""
    return bool(index.size) and bool(tables.inexact[int(index.min()) : int(index.max()) + 1].any())


def encode_values(fmt: Format, values: F64) -> U8:
    """The nearest code of each value, ties to the even mantissa, beyond the largest saturated. -0.0 keeps its sign.

    Codes are one byte an element; FP4 codes are not packed here (`encode`).
    """
    grid = _positive_grid(fmt)
    middle = (grid[:-1] + grid[1:]) / 2
    magnitude = np.abs(values)
    code = np.searchsorted(middle, magnitude, side="left").astype(np.uint8)
    tie = (code < len(middle)) & (magnitude == middle[np.minimum(code, len(middle) - 1)])
    code += tie & (code & 1 == 1)  # codes are ordered, so an odd code has an odd mantissa
    sign = 0x80 if fmt.elements_per_byte == 1 else 8
    signed: U8 = np.where(np.signbit(values), code | sign, code).astype(np.uint8)
    return signed


def _positive_grid(fmt: Format) -> F64:
    values = fmt.values[: 128 if fmt.elements_per_byte == 1 else 8, 0]
    return np.asarray(values[~np.isnan(values)])


def encode(fmt: Format, weight: F64, block: tuple[int, int]) -> tuple[U8, U8]:
    """Quantise a float64 matrix [R, C] with power-of-two scales, as DeepSeek does: 2^ceil(log2(amax / largest)).

    Returns:
        The packed bytes [R, C / elements_per_byte] and E8M0 codes [ceil(R / rows), ceil(C / columns)].
        A block of zeros has scale 1. Re-encoding what `bf16_tables` decoded gives values equal to the decoded ones.
    """
    rows, columns = (-(-n // b) for n, b in zip(weight.shape, block, strict=True))
    padded = np.zeros((rows * block[0], columns * block[1]))
    padded[: weight.shape[0], : weight.shape[1]] = weight
    amax = np.abs(padded).reshape(rows, block[0], columns, block[1]).max(axis=(1, 3))
    least = np.finfo(np.float64).tiny  # a quotient that underflows to 0 is still of a block that is not of zeros
    fraction, exponent = np.frexp(np.maximum(amax / fmt.largest, least))
    power = np.where(amax == 0, 0, np.where(fraction == 0.5, exponent - 1, exponent))
    code = np.clip(power + 127, 0, 254).astype(np.uint8)
    scale = e8m0_values()[code].repeat(block[0], axis=0).repeat(block[1], axis=1)
    codes = encode_values(fmt, weight / scale[: weight.shape[0], : weight.shape[1]])
    if fmt.elements_per_byte == 2:
        codes = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
    return codes, code


# How FP4 goes into FP8 (DeepSeek's inference/convert.py): the new scale is the largest old one of the 128 x 128 tile
# over 2^6, since 6 * 2^6 = 384 <= 448. An old scale 2^d below the largest multiplies by 2^(6-d); from d = 19 on all
# codes become 0.
REPACK_TILE = (128, 128)
_REPACK_HEADROOM = 6
_REPACK_DEEPEST = 20


@cache
def repack_tables() -> Tables:
    """FP4 to FP8 tables for `repack_scales` indices: row d multiplies by 2^(6-d)."""
    return fp8_tables(FP4, np.ldexp(1.0, _REPACK_HEADROOM - np.arange(_REPACK_DEEPEST + 1)))


def repack_scales(old: U8) -> tuple[NDArray[np.int32], U8]:
    """Table index of each FP4 group and E8M0 code of each 128 x 128 tile, from E8M0 codes `old` [R, ceil(C/32)].

    Row 0 must be the first row of a tile. Code 255 (NaN) must have been refused.
    """
    rows, groups = REPACK_TILE[0], REPACK_TILE[1] // 32
    tiles = -(-old.shape[0] // rows), -(-old.shape[1] // groups)
    padded = np.zeros((tiles[0] * rows, tiles[1] * groups), dtype=np.uint8)
    padded[: old.shape[0], : old.shape[1]] = old
    largest = padded.reshape(tiles[0], rows, tiles[1], groups).max(axis=(1, 3)).astype(np.int32)
    new = np.maximum(largest - _REPACK_HEADROOM, 0)
    spread = new.repeat(rows, axis=0).repeat(groups, axis=1)[: old.shape[0], : old.shape[1]]
    index = np.clip(_REPACK_HEADROOM - (old - spread), 0, _REPACK_DEEPEST).astype(np.int32)
    return index, new.astype(np.uint8)
