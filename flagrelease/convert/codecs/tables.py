"""Decoding as a table look-up.

A quantised weight is a matrix of bytes and a matrix of scales, one scale for a block. Once the scale of a block is
known, each of the 256 byte values decodes to fixed output bits; so decoding, and repacking FP4 as FP8, is one look-up
a byte in a table chosen by block (`flagrelease.convert.codecs.lookup`). All rounding happens here, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import F64, U8, Decoder
from flagrelease.convert.codecs.scales import e8m0_values
from flagrelease.once import once


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


@once
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
