"""The second encoder: scales for each row, and INT8 and E4M3 codes under them, from exact values in float64.

Written from the rules in `flagrelease.formats.releases`, in numpy, to be compared with what the converter wrote; it
shares no code with it. Rows are the first dimension of every array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagrelease.formats.formats import FP8_CHANNEL, INT8, Format
from flagrelease.verify.decoder import F64, U8, fp8_values, round_to_bf16

LARGEST = {INT8: 127.0, FP8_CHANNEL: 448.0}
SCALE_RULES = {INT8: ("best", "power-of-two", "absmax", "mse"), FP8_CHANNEL: ("power-of-two", "absmax")}
_SMALLEST_SCALE = 2.0**-126
_LARGEST_E4M3 = 0x7E  # 448
_CANDIDATES = [0.5 + 0.0025 * i for i in range(201)]


@dataclass(frozen=True, slots=True)
class RowRule:
    """How rows are stored: INT8 or FP8_CHANNEL codes, the rule of the scale by name, and whether it must be BF16."""

    format: Format
    scale: str
    bf16: bool = False


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as they must be stored: scales float64 [rows], codes [rows, columns]; and stored minus source, float64."""

    scales: F64
    codes: U8
    errors: F64


def encode_rows(x: F64, rule: RowRule) -> EncodedRows:
    """Encode exact values [rows, columns], which must be finite. A scale beyond float32 comes out as infinity."""
    rowmax = np.abs(x).max(axis=1, initial=0.0)
    if rule.scale == "absmax":
        scales = absmax_scales(rowmax, rule)
        return EncodedRows(scales, *_encode_under(x, scales, rule))
    scales = power_of_two_scales(rowmax, LARGEST[rule.format])
    encoded = EncodedRows(scales, *_encode_under(x, scales, rule))
    if rule.scale in ("best", "mse"):
        _improve(encoded, x, rowmax, rule)
    return encoded


def power_of_two_scales(rowmax: F64, largest: float) -> F64:
    """The smallest power of two under which a row's largest magnitude is no more than `largest`; 1 for zeros."""
    mantissa, exponent = np.frexp(rowmax)
    top, places = np.frexp(largest)
    powers = np.ldexp(1.0, np.maximum(exponent - places + (mantissa > top), -126))
    return _within_float32(np.where(rowmax == 0, 1.0, powers))


def absmax_scales(rowmax: F64, rule: RowRule, share: float = 1.0) -> F64:
    """`share` of the largest magnitude over the largest code, rounded once to float32 or BF16; 1 for zeros."""
    exact = np.maximum(rowmax / LARGEST[rule.format] * share, _SMALLEST_SCALE)
    with np.errstate(over="ignore"):  # infinity is what no float32 holds, and the caller reports it
        rounded = _bf16_values(exact) if rule.bf16 else exact.astype(np.float32).astype(np.float64)
    return _within_float32(np.where(rowmax == 0, 1.0, rounded))


def is_bf16(scales: F64) -> npt.NDArray[np.bool_]:
    """Which scales BF16 holds exactly."""
    return np.asarray(_bf16_values(scales) == scales)


def _bf16_values(exact: F64) -> F64:
    bits = round_to_bf16(exact)[0]
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _within_float32(scales: F64) -> F64:
    return np.where(scales < 2.0**128, scales, np.inf)


def _improve(encoded: EncodedRows, x: F64, rowmax: F64, rule: RowRule) -> None:
    """Encode rows anew where another scale has a smaller sum of squared errors than their power of two.

    What is exact under a power of two cannot be beaten. A tie goes to the larger scale: the power of two is the largest
    of all, and the candidates of a search are tried from the largest on.
    """
    rows = np.flatnonzero((encoded.errors != 0).any(axis=1))
    if len(rows) == 0:
        return
    source, least = x[rows], in_order(encoded.errors[rows] ** 2)
    for share in (1.0,) if rule.scale == "best" else reversed(_CANDIDATES):
        scales = absmax_scales(rowmax[rows], rule, share)
        codes, errors = _encode_under(source, scales, rule)
        sums = in_order(errors * errors)
        better = sums < least
        least[better], places = sums[better], rows[better]
        encoded.scales[places], encoded.codes[places], encoded.errors[places] = (
            scales[better],
            codes[better],
            errors[better],
        )


def in_order(terms: F64) -> F64:
    """The sum of each row [rows, columns], added from the first element to the last, as `cumsum` does."""
    return np.cumsum(terms, axis=1)[:, -1]


def _encode_under(x: F64, scales: F64, rule: RowRule) -> tuple[U8, F64]:
    """Codes of `x` under the scales of its rows, and stored minus source."""
    divisors = scales[:, None]
    quotients = x / divisors
    with np.errstate(invalid="ignore"):  # infinity times zero, where no float32 holds the scale
        if rule.format is INT8:
            held = np.rint(quotients, out=quotients)
            np.clip(held, -127.0, 127.0, out=held)
            codes = held.astype(np.int8).view(np.uint8)
            held *= divisors
            held -= x
            return codes, held
        codes = nearest_e4m3_codes(quotients)
        return codes, fp8_values(codes) * divisors - x


def nearest_e4m3_codes(values: F64) -> U8:
    """E4M3 codes of float64 values: 4 significant bits, steps of 2^-9 below 2^-6, ties to even, at most 448."""
    magnitudes = np.abs(values)
    bits = magnitudes.view(np.uint64)
    dropped = np.uint64(52 - 3)
    half = np.uint64((1 << 48) - 1)
    rounded = (bits + half + ((bits >> dropped) & np.uint64(1))) >> dropped
    # a code without its sign is four bits of exponent and three of mantissa, as float64 has them with another bias
    codes: U8 = np.minimum(rounded - np.uint64((1023 - 7) << 3), np.uint64(_LARGEST_E4M3)).astype(np.uint8)
    small = magnitudes < 2.0**-6
    codes[small] = np.rint(magnitudes[small] * 2.0**9)
    codes |= np.signbit(values).astype(np.uint8) << np.uint8(7)
    return codes
