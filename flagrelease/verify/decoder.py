"""The second decoder: FP4 and FP8 weights with block scales to BF16, and the rule that repacks FP4 as FP8.

It is written in numpy from the definitions of the number formats (OCP Microscaling Formats v1.0: E2M1, E4M3, E8M0) and
shares no code with the converter, whose output is compared with it. Bit patterns are unsigned integers throughout.

A weight decodes to code value times scale, rounded once to the nearest BF16, ties to even. FP4 code 8 is -0.0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flagrelease.once import once

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

FP4_GROUP = 32  # elements of a row that share one scale
E8M0_NAN = 255
E4M3_NAN = 0x7F  # with either sign
_E8M0_BIAS = 127
# Powers of two in here keep every product of a code and a scale a normal float32, so it is exact and fast.
_SAFE_EXPONENTS = (-100, 100)


def e2m1_value(code: int) -> float:
    """The value of a 4-bit code: sign, two exponent bits (bias 1), one mantissa bit."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -magnitude if sign else magnitude


def e4m3_value(code: int) -> float:
    """The value of an 8-bit code: sign, four exponent bits (bias 7), three mantissa bits; 0x7F and 0xFF are NaN."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    magnitude = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if sign else magnitude


def e8m0_value(code: int) -> float:
    """The value of a scale code: 2^(code - 127); 255 is NaN."""
    return float("nan") if code == E8M0_NAN else 2.0 ** (code - _E8M0_BIAS)


# Two codes share a byte: the low nibble is the even (first) element. A pair of float32 is looked up as one uint64.
_E2M1_PAIRS = np.array([[e2m1_value(b & 15), e2m1_value(b >> 4)] for b in range(256)], "<f4").view("<u8")[:, 0]
_E4M3 = np.array([e4m3_value(code) for code in range(256)], "<f4")
_E8M0 = np.array([e8m0_value(code) for code in range(256)], "<f8")


def fp4_values(packed: U8) -> F32:
    """Values of packed codes [rows, bytes] as float32 [rows, 2 * bytes]."""
    return _E2M1_PAIRS.take(packed).view(np.float32)


def fp8_values(codes: U8) -> F32:
    """Values of E4M3 codes [rows, columns] as float32 of the same shape."""
    return _E4M3.take(codes)


# the decoder of each declared format
VALUES = {"fp4": fp4_values, "fp8": fp8_values}


def scale_values(raw: U8, dtype: str) -> F64:
    """Scales [rows, bytes] of a safetensors dtype as float64 [rows, columns]. float64 holds all of them exactly."""
    if dtype == "F8_E8M0":
        return _E8M0.take(raw)
    if dtype == "BF16":
        with np.errstate(invalid="ignore"):
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    with np.errstate(invalid="ignore"):  # numpy warns of a signalling NaN; `count_bad` finds it
        return raw.view({"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)


def count_bad(scales: F64) -> int:
    """How many scales are NaN, infinite or negative."""
    return int(np.count_nonzero(~(np.isfinite(scales) & (scales >= 0))))


def to_bf16(values: F32, scales: F64, block: tuple[int, int]) -> tuple[U16, int]:
    """BF16 bits of `values` [rows, columns] times the scale of their block, and how many elements were rounded.

    `scales` is [ceil(rows / block[0]), ceil(columns / block[1])]. `values` is overwritten.
    """
    if are_safe(scales):
        multiply(values, scales.astype(np.float32), block)
        return values.view(np.uint16)[:, 1::2], 0  # the upper halves; the lower are zero, for the products are exact
    products = values.astype(np.float64)  # 4 significant bits times at most 24: exact in float64
    with np.errstate(invalid="ignore"):  # an infinite scale times zero; `count_bad` finds it
        multiply(products, scales, block)
    return round_to_bf16(products)


def are_safe(scales: F64) -> bool:
    """Whether any number of a stored format times any of these scales is an exact, normal float32 within BF16."""
    mantissas, exponents = np.frexp(scales)
    low, high = _SAFE_EXPONENTS
    return bool(np.all(mantissas == 0.5) and np.all((exponents > low) & (exponents <= high)))


def multiply(values: npt.NDArray[np.floating], scales: npt.NDArray[np.floating], block: tuple[int, int]) -> None:
    """Multiply `values` [rows, columns] in place by the scale of their block, [ceil(rows / r), ceil(columns / c)]."""
    (rows, columns), (height, width) = values.shape, block
    if rows % height == 0 and columns % width == 0:
        tiles = values.reshape(rows // height, height, columns // width, width)
        tiles *= scales[:, None, :, None]
    else:  # ragged edge: the last block of a row or column is cut off
        values *= scales.repeat(height, axis=0)[:rows].repeat(width, axis=1)[:, :columns]


def round_to_bf16(exact: F64) -> tuple[U16, int]:
    """Round float64 once to BF16 (8 significant bits, quantum 2^-133 below 2^-126), ties to even."""
    bits = exact.view(np.uint64)
    dropped = np.uint64(52 - 7)
    half = np.uint64((1 << 44) - 1)
    kept = (bits + half + ((bits >> dropped) & np.uint64(1))) >> dropped << dropped
    rounded = kept.view(np.float64)
    tiny = np.abs(exact) < 2.0**-126
    rounded[tiny] = np.ldexp(np.rint(np.ldexp(exact[tiny], 133)), -133)
    with np.errstate(over="ignore"):  # beyond the largest BF16 the nearest is infinity, which the caller reports
        narrow = rounded.astype(np.float32)
    inexact = (narrow.astype(np.float64) != exact) & ~np.isnan(exact)
    return (narrow.view(np.uint32) >> 16).astype(np.uint16), int(np.count_nonzero(inexact))


def repacked_scales(codes: U8, block: tuple[int, int]) -> U8:
    """E8M0 codes of the FP8 tiles for FP4 scale codes [rows, columns / 32]: the tile's largest, divided by 2^6.

    6 * 2^6 = 384 is the largest product and 448 the largest E4M3. The smallest scale is code 0, which still
    keeps 6 * 2^5 in range for a tile whose largest code is below 6.
    """
    height, width = block[0], block[1] // FP4_GROUP
    tall = np.maximum.reduceat(codes, range(0, codes.shape[0], height), axis=0)
    largest = np.maximum.reduceat(tall, range(0, codes.shape[1], width), axis=1)
    return np.maximum(largest, 6) - np.uint8(6)


def repacked_codes(packed: U8, codes: U8, tiles: U8, block: tuple[int, int]) -> tuple[U8, int]:
    """The E4M3 codes [rows, columns] nearest to FP4 codes under the tiles' scales, and how many differ in value.

    `packed` is [rows, columns / 2], `codes` the FP4 scales [rows, columns / 32], `tiles` their `repacked_scales`.
    """
    (rows, groups), (height, width) = codes.shape, (block[0], block[1] // FP4_GROUP)
    spread = tiles.repeat(height, axis=0)[:rows].repeat(width, axis=1)[:, :groups]
    shifts = codes.astype(np.int16) - spread
    nearest, lost = _shift_tables()
    index = (np.clip(shifts, _LOWEST_SHIFT, 6) - _LOWEST_SHIFT).astype(np.uint16) << np.uint16(8)
    places = index[:, :, None] | packed.reshape(rows, groups, FP4_GROUP // 2)
    pairs = nearest.take(places).reshape(rows, -1)
    missing = 0 if shifts.min(initial=0) >= -8 else int(lost.take(places).sum(dtype=np.int64))
    return pairs.view(np.uint8), missing


_LOWEST_SHIFT = -13  # from here down 6 * 2^shift is under half of the smallest E4M3, 2^-9: every code becomes zero


@once
def _shift_tables() -> tuple[U16, U8]:
    """For every shift and packed byte: the two nearest E4M3 codes as one uint16, and how many of them are inexact."""
    shifts = range(_LOWEST_SHIFT, 7)
    code = {(s, c): nearest_e4m3(e2m1_value(c & 7) * 2.0**s) | (c & 8) << 4 for s in shifts for c in range(16)}
    bad = {key: e4m3_value(e4m3) != e2m1_value(key[1]) * 2.0 ** key[0] for key, e4m3 in code.items()}
    pairs = [code[s, b & 15] | code[s, b >> 4] << 8 for s in shifts for b in range(256)]
    return np.array(pairs, "<u2"), np.array([bad[s, b & 15] + bad[s, b >> 4] for s in shifts for b in range(256)], "u1")


def nearest_e4m3(magnitude: float) -> int:
    """The code of the E4M3 nearest to a magnitude up to 448, ties to the even code."""
    return min(range(0x7F), key=lambda code: (abs(e4m3_value(code) - magnitude), code & 1))
