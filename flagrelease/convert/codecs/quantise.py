"""Numbers to codes: the nearest code of each value, and a matrix with a power-of-two scale for each block."""

from __future__ import annotations

import numpy as np

from flagrelease.convert.codecs.decoder import F64, U8, Decoder
from flagrelease.convert.codecs.scales import e8m0_values


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
