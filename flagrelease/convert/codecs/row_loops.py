"""The loops of `rows.py`: one row after the other, compiled by numba, without fast-math."""

from __future__ import annotations

import math

import numba
import numpy as np

RULES = ("power-of-two", "absmax", "best", "mse")
_POWER, _ABSMAX, _BEST, _MSE = range(4)
INT8_LARGEST, E4M3_LARGEST = 127.0, 448.0
# Below the first, every code times 2^d rounds to zero; above the last, every code but zero is beyond the largest.
LOWEST, HIGHEST = -20, 17
_LEAST_EXPONENT = -126  # the smallest normal float32
# 2^e for every exponent that a float32 scale can have, at e + _BIAS: quicker than ldexp in a loop.
_BIAS = 150
_POWERS = np.ldexp(1.0, np.arange(-_BIAS, 129))


@numba.njit(nogil=True)
def _power_of_two(rowmax, largest):  # type: ignore[no-untyped-def]
    """The smallest k with rowmax <= largest * 2^k."""
    if rowmax == 0.0:
        return 0
    k = math.frexp(rowmax / largest)[1]
    while math.ldexp(largest, k - 1) >= rowmax:
        k -= 1
    return max(k, _LEAST_EXPONENT)


@numba.njit(nogil=True)
def _stored_scale(quotient, bf16):  # type: ignore[no-untyped-def]
    exact = max(quotient, math.ldexp(1.0, _LEAST_EXPONENT))
    if bf16:
        fraction, exponent = math.frexp(exact)
        return math.ldexp(np.rint(fraction * 256.0), exponent - 8)
    return np.float64(np.float32(exact))


@numba.njit(nogil=True)
def _nearest(quotient, fp8):  # type: ignore[no-untyped-def]
    """The INT8 number nearest to a quotient, or the E4M3 number: 4 significant bits, steps of 2^-9 or more."""
    if not fp8:
        return min(max(np.rint(quotient), -INT8_LARGEST), INT8_LARGEST)
    exponent = max(math.frexp(quotient)[1] - 4, -9)
    held = math.ldexp(np.rint(math.ldexp(quotient, -exponent)), exponent)
    return min(max(held, -E4M3_LARGEST), E4M3_LARGEST)


@numba.njit(nogil=True)
def _e4m3_code(held, negative):  # type: ignore[no-untyped-def]
    """The code of a number that E4M3 holds."""
    magnitude = abs(held)
    sign = 128 if negative else 0
    if magnitude < 0.015625:
        return sign | int(magnitude * 512.0)
    fraction, exponent = math.frexp(magnitude)
    return sign | (exponent + 6) << 3 | int(fraction * 16.0) - 8


@numba.njit(nogil=True)
def _error(x, scale, fp8):  # type: ignore[no-untyped-def]
    """The sum of squared errors of a row under a scale."""
    total = 0.0
    for c in range(x.shape[0]):
        error = _nearest(x[c] / scale, fp8) * scale - x[c]
        total += error * error
    return total


@numba.njit(nogil=True)
def _choose(x, rowmax, fp8, largest, rule, bf16):  # type: ignore[no-untyped-def]
    power = math.ldexp(1.0, _power_of_two(rowmax, largest))
    if rule == _POWER or rowmax == 0.0:
        return power
    absmax = _stored_scale(rowmax / largest, bf16)
    if rule == _ABSMAX:
        return absmax
    best, least = power, _error(x, power, fp8)
    if rule == _BEST:
        return absmax if _error(x, absmax, fp8) < least else power
    for i in range(200, -1, -1):
        scale = _stored_scale(rowmax / largest * (0.5 + 0.0025 * i), bf16)
        error = _error(x, scale, fp8)
        if error < least:
            best, least = scale, error
    return best


@numba.njit(nogil=True)
def _finish_row(x, scale, fp8, out):  # type: ignore[no-untyped-def]
    """Write the codes of a row; (inexact elements, squared error, squares, largest error)."""
    inexact, squared_error, squares, largest_error = 0, 0.0, 0.0, 0.0
    for c in range(x.shape[0]):
        held = _nearest(x[c] / scale, fp8)
        out[c] = _e4m3_code(held, math.copysign(1.0, x[c]) < 0.0) if fp8 else np.uint8(np.int8(held))
        error = held * scale - x[c]
        inexact += error != 0.0
        squared_error += error * error
        squares += x[c] * x[c]
        largest_error = max(largest_error, abs(error))
    return inexact, squared_error, squares, largest_error


@numba.njit(nogil=True)
def _largest_magnitude(codes, exponents, columns, order, magnitudes):  # type: ignore[no-untyped-def]
    """The largest magnitude of a row. Blocks whose largest code could not reach it are skipped."""
    bound, widest = magnitudes[order.max()], exponents.max()
    rowmax = 0.0
    for first in (True, False):  # the blocks of the largest scale first: mostly they are enough
        for b in range(exponents.shape[0]):
            power = _POWERS[exponents[b] + _BIAS]
            if (exponents[b] == widest) != first or bound * power <= rowmax:
                continue
            top = np.uint8(0)
            for c in range(b * columns, min((b + 1) * columns, codes.shape[0])):
                top = max(top, order[codes[c]])
            rowmax = max(rowmax, magnitudes[top] * power)
    return rowmax


@numba.njit(nogil=True)
def _look_up_row(codes, exponents, columns, k, entries, inexact, clean, out):  # type: ignore[no-untyped-def]
    """Write the codes of a row under the scale 2^k; the number of inexact elements."""
    lost = 0
    for b in range(exponents.shape[0]):
        d = min(max(exponents[b] - k, LOWEST), HIGHEST) - LOWEST
        table, counts = entries[d], inexact[d]
        begin, end = b * columns, min((b + 1) * columns, codes.shape[0])
        for c in range(begin, end):
            out[c] = table[codes[c]]
        if not clean[d]:
            for c in range(begin, end):
                lost += counts[codes[c]]
    return lost


@numba.njit(nogil=True)
def _sum_of_squares(out, squares):  # type: ignore[no-untyped-def]
    """Of the codes of a row, in integers. Where every element is exact, any order gives the sum that the rule asks for:
    all squares are multiples of one number, and their sum fits in 53 bits."""
    total = np.int64(0)
    for c in range(out.shape[0]):
        total += squares[out[c]]
    return total


@numba.njit(nogil=True)
def quantise(  # type: ignore[no-untyped-def]
    codes, exponents, known, scales, rows, columns, values, order, magnitudes, squares, unit, entries, inexact, clean,
    fp8, largest, rule, bf16, out, packed, scale_out, inexact_out, error_out, squares_out, largest_error_out,
    largest_out,
):  # fmt: skip
    """`rows.quantise_rows`, which explains the arguments, on arrays alone."""
    width = values.shape[1]
    x = np.empty(codes.shape[1] * width)
    for r in range(codes.shape[0]):
        if known and rule != _ABSMAX:
            of_row = exponents[r // rows]
            rowmax = _largest_magnitude(codes[r], of_row, columns, order, magnitudes)
            k = _power_of_two(rowmax, largest)
            if _look_up_row(codes[r], of_row, columns, k, entries, inexact, clean, packed[r]) == 0:
                total = np.float64(_sum_of_squares(out[r], squares))
                scale_out[r], largest_out[r] = math.ldexp(1.0, k), rowmax
                squares_out[r] = math.ldexp(total, 2 * (k + unit))
                continue
        rowmax = 0.0
        for b in range(scales.shape[1]):
            scale = scales[r // rows, b]
            for c in range(b * columns, min((b + 1) * columns, codes.shape[1])):
                for e in range(width):
                    x[c * width + e] = values[codes[r, c], e] * scale
                    rowmax = max(rowmax, abs(x[c * width + e]))
        scale = _choose(x, rowmax, fp8, largest, rule, bf16)
        lost, error, total, largest_error = _finish_row(x, scale, fp8, out[r])
        scale_out[r], inexact_out[r], error_out[r] = scale, lost, error
        squares_out[r], largest_error_out[r], largest_out[r] = total, largest_error, rowmax
