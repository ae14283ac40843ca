"""The rules for scales by row in plain Python: fractions where the rule is exact, floats where it says float64.

It is slow and shares nothing with the package but the words of `flagrelease.formats.releases`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

_E4M3 = [Fraction(c & 7, 8) * Fraction(2) ** -6 for c in range(8)]
_E4M3 += [(1 + Fraction(c & 7, 8)) * Fraction(2) ** ((c >> 3) - 7) for c in range(8, 0x7F)]
LARGEST = {"int8": 127, "fp8-channel": 448}


@dataclass(frozen=True)
class PlainRow:
    """A row as it must be stored: scale, bytes of the codes, and stored minus source in float64."""

    scale: float
    codes: list[int]
    errors: list[float]

    @property
    def inexact(self) -> int:
        return sum(error != 0 for error in self.errors)


def encode_row(x: list[float], fmt: str, rule: str, bf16: bool = False) -> PlainRow:
    """Encode one row of exact values under `rule`: power-of-two, absmax, best or mse."""
    power = _under(x, power_of_two(x, fmt), fmt)
    if rule == "power-of-two" or not any(x):
        return power
    if rule == "absmax":
        return _under(x, absmax(x, fmt, bf16), fmt)
    if rule == "best":
        other = _under(x, absmax(x, fmt, bf16), fmt)
        return power if power.inexact == 0 or _squares(power) <= _squares(other) else other
    assert rule == "mse"
    candidates = [_under(x, absmax(x, fmt, bf16, 0.5 + 0.0025 * i), fmt) for i in range(201)]
    return min([power, *candidates], key=lambda row: (_squares(row), -row.scale))


def power_of_two(x: list[float], fmt: str) -> float:
    if not any(x):
        return 1.0
    rowmax, k = max(abs(Fraction(value)) for value in x), -126
    while rowmax > LARGEST[fmt] * Fraction(2) ** k:
        k += 1
    return math.ldexp(1.0, k)


def absmax(x: list[float], fmt: str, bf16: bool, share: float = 1.0) -> float:
    exact = max(max(abs(value) for value in x) / LARGEST[fmt] * share, 2.0**-126)
    return _nearest(exact, 8) if bf16 else struct.unpack("<f", struct.pack("<f", exact))[0]


def _nearest(value: float, digits: int) -> float:
    """Rounded to so many significant binary digits, ties to even."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**digits), exponent - digits)


def _under(x: list[float], scale: float, fmt: str) -> PlainRow:
    codes, errors = [], []
    for value in x:
        quotient = float(Fraction(value) / Fraction(scale))
        if fmt == "int8":
            code = max(-127, min(127, round(quotient)))
            held = Fraction(code)
            codes.append(code & 0xFF)
        else:
            magnitude = abs(Fraction(quotient))
            code = min(range(0x7F), key=lambda c: (abs(_E4M3[c] - magnitude), c & 1))
            negative = math.copysign(1, value) < 0
            held = -_E4M3[code] if negative else _E4M3[code]
            codes.append(code | 0x80 if negative else code)
        product = float(held * Fraction(scale))
        assert Fraction(product) == held * Fraction(scale), "a code has too few digits to need rounding"
        errors.append(product - value)
    return PlainRow(scale, codes, errors)


def _squares(row: PlainRow) -> float:
    total = 0.0
    for error in row.errors:
        total += error * error
    return total
