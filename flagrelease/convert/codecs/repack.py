"""FP4 with a scale for 32 elements, repacked as FP8 with a scale for each tile: a look-up too.

The rule is DeepSeek's (inference/convert.py of V4, whose tiles are 128 x 128, and of V4.1, 32 x 32): the new scale is
the largest old one of the tile over 2^6, since 6 * 2^6 = 384 <= 448. An old scale 2^d below the largest multiplies by
2^(6-d); from d = 19 on all codes become 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import F64, U8, Decoder
from flagrelease.convert.codecs.fp4 import FP4_DECODER
from flagrelease.convert.codecs.fp8 import FP8_DECODER
from flagrelease.convert.codecs.quantise import encode_values
from flagrelease.convert.codecs.tables import Tables, count_inexact, pack
from flagrelease.once import once

_REPACK_HEADROOM = 6
_REPACK_DEEPEST = 20


def fp8_tables(decoder: Decoder, ratios: F64) -> Tables:
    """Tables that repack codes as E4M3: value times ratio (old scale over new scale), rounded once, to even."""
    exact = decoder.values[None, :, :] * ratios[:, None, None]
    codes = encode_values(FP8_DECODER, exact)
    return Tables(pack(codes), count_inexact(exact, FP8_DECODER.values[codes, 0]))


@once
def repack_tables() -> Tables:
    """FP4 to FP8 tables for `repack_scales` indices: row d multiplies by 2^(6-d)."""
    return fp8_tables(FP4_DECODER, np.ldexp(1.0, _REPACK_HEADROOM - np.arange(_REPACK_DEEPEST + 1)))


def repack_scales(old: U8, tile: tuple[int, int]) -> tuple[NDArray[np.int32], U8]:
    """Table index of each FP4 group and E8M0 code of each tile of FP8, from E8M0 codes `old` [R, ceil(C/32)].

    `tile`: rows and columns, whole groups of 32. Row 0 must be the first row of a tile. Code 255 (NaN) must have been
    refused.
    """
    rows, groups = tile[0], tile[1] // 32
    tiles = -(-old.shape[0] // rows), -(-old.shape[1] // groups)
    padded = np.zeros((tiles[0] * rows, tiles[1] * groups), dtype=np.uint8)
    padded[: old.shape[0], : old.shape[1]] = old
    largest = padded.reshape(tiles[0], rows, tiles[1], groups).max(axis=(1, 3)).astype(np.int32)
    new = np.maximum(largest - _REPACK_HEADROOM, 0)
    spread = new.repeat(rows, axis=0).repeat(groups, axis=1)[: old.shape[0], : old.shape[1]]
    index = np.clip(_REPACK_HEADROOM - (old - spread), 0, _REPACK_DEEPEST).astype(np.int32)
    return index, new.astype(np.uint8)
