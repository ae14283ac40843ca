"""MXFP8: E4M3 codes with a scale exponent for each 32 elements of a row (OCP Microscaling Formats v1.0).

Both source formats go into it without loss. Every FP4 number is an E4M3 number, so its scale byte stays. An FP8 block
has one scale for 128 x 128 elements, so its codes stay and its exponent is repeated, if it is a power of two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.fp4 import FP4_DECODER
from flagrelease.convert.codecs.repack import fp8_tables
from flagrelease.convert.codecs.tables import Tables
from flagrelease.once import once

GROUP = 32


@once
def fp4_as_e4m3() -> Tables:
    """One table, for index 0: the E4M3 codes of the two numbers that a byte of FP4 holds."""
    return fp8_tables(FP4_DECODER, np.ones(1))


def spread_scales(exponents: NDArray[np.int32], block: tuple[int, int], shape: tuple[int, int]) -> U8:
    """The exponent bytes [rows, ceil(columns / 32)] of an FP8 weight of `shape`.

    Args:
        exponents: log2 of the scale of each block, from -127 to 127.
        block: rows and columns that share a scale; whole groups of 32 columns.
        shape: of the weight.
    """
    groups = -(-shape[1] // GROUP)
    tall = (exponents + 127).astype(np.uint8).repeat(block[0], axis=0)[: shape[0]]
    return np.ascontiguousarray(tall.repeat(block[1] // GROUP, axis=1)[:, :groups])
