"""Converts values to places on an axis, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flagrelease.page.svg import text_width

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


Ticks = list[tuple[float, str]]


def _with_room(ticks: Ticks, place: Callable[[float], float]) -> Ticks:
    """Leave out labels that would touch the one before them."""
    kept: Ticks = []
    for value, label in ticks:
        if not kept or abs(place(value) - place(kept[-1][0])) > (text_width(label) + text_width(kept[-1][1])) / 2 + 4:
            kept.append((value, label))
    return kept


@dataclass(frozen=True, slots=True)
class LinearScale:
    """Puts values from `low` to `high`, which differ, at `start` to `end`; values outside are put at the edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of `value`."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> Ticks:
        """(value, label) at multiples of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(n * step, f"{n * step:.{digits}f}".replace("-", "−")) for n in range(first, last + 1)]

    def roomy_ticks(self, about: int = 5) -> Ticks:
        """`ticks` on a horizontal axis, without labels that would touch."""
        return _with_room(self.ticks(about), self)


@dataclass(frozen=True, slots=True)
class Log:
    """The same on a logarithmic axis; all values must be above 0."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of `value`."""
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Ticks:
        """(value, label) at powers of ten, and at 2 and 5 times them where there are few."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        powers = [(10.0**n, power_of_ten(n)) for n in range(first, last + 1)]
        if self.high / self.low < 200:
            powers = [(factor * power, f"{factor * power:,g}") for power, _ in powers for factor in (1, 2, 5)]
        return [(value, label) for value, label in powers if self.low * 0.999 <= value <= self.high * 1.001]

    def roomy_ticks(self) -> Ticks:
        """`ticks` on a horizontal axis, without labels that would touch."""
        return _with_room(self.ticks(), self)


def power_of_ten(exponent: int) -> str:
    """Format a power of ten: `1`, `10`, `0.1`; above 100 and below 0.01 with a raised exponent."""
    if -2 <= exponent <= 2:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(_SUPERSCRIPT)
