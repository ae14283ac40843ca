"""The converter's encoders: numbers to FP8 and FP4 codes, and FP4 repacked as FP8 by table look-up."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.decoding import (
    F64,
    FP4_DECODER,
    FP8_DECODER,
    U8,
    Decoder,
    Tables,
    count_inexact,
    e8m0_values,
    pack,
)


def fp8_tables(decoder: Decoder, ratios: F64) -> Tables:
    """Tables that repack codes as E4M3: value times ratio (old scale over new scale), rounded once, to even."""
    exact = decoder.values[None, :, :] * ratios[:, None, None]
    codes = encode_values(FP8_DECODER, exact)
    return Tables(pack(codes), count_inexact(exact, FP8_DECODER.values[codes, 0]))


def encode_values(decoder: Decoder, values: F64) -> U8:
    """The nearest code of each value, ties to the even mantissa, beyond the largest saturated. -0.0 keeps its sign.

    Codes are one byte an element; FP4 codes are not packed here (`encode`).
    """
    grid = _positive_grid(decoder)
    middle = (grid[:-1] + grid[1:]) / 2
    magnitude = np.abs(values)
    code = np.searchsorted(middle, magnitude, side="left").astype(np.uint8)
    tie = (code < len(middle)) & (magnitude == middle[np.minimum(code, len(middle) - 1)])
    code += tie & (code & 1 == 1)  # codes are ordered, so an odd code has an odd mantissa
    sign = 0x80 if decoder.elements_per_byte == 1 else 8
    signed: U8 = np.where(np.signbit(values), code | sign, code).astype(np.uint8)
    return signed


def _positive_grid(decoder: Decoder) -> F64:
    values = decoder.values[: 128 if decoder.elements_per_byte == 1 else 8, 0]
    return np.asarray(values[~np.isnan(values)])


def encode(decoder: Decoder, weight: F64, block: tuple[int, int]) -> tuple[U8, U8]:
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
    fraction, exponent = np.frexp(np.maximum(amax / decoder.largest, least))
    power = np.where(amax == 0, 0, np.where(fraction == 0.5, exponent - 1, exponent))
    code = np.clip(power + 127, 0, 254).astype(np.uint8)
    scale = e8m0_values()[code].repeat(block[0], axis=0).repeat(block[1], axis=1)
    codes = encode_values(decoder, weight / scale[: weight.shape[0], : weight.shape[1]])
    if decoder.elements_per_byte == 2:
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
    return fp8_tables(FP4_DECODER, np.ldexp(1.0, _REPACK_HEADROOM - np.arange(_REPACK_DEEPEST + 1)))


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
