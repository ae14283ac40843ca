"""How many answers behind a score were none: cut off, without the asked form, refused. They stand beside it."""

from __future__ import annotations

from typing import Literal

from flagrelease.records.report import Benchmark

_NAMES = {"truncated": "cut off", "invalid": "without an answer", "refused": "refused", "undecided": "undecided"}
_RARE = ("undecided",)  # code that nobody ran, and the like: said where there is any


def rates_of(benchmark: Benchmark, side: Literal["native", "chip"]) -> dict[str, float]:
    """Name -> percent of the answers of one side, as far as the report has them."""
    sides = benchmark.figures.get("sides")
    figures = sides.get(side) if isinstance(sides, dict) else None
    if not isinstance(figures, dict):
        return {}
    found = {said: figures.get(key) for key, said in _NAMES.items()}
    rates = {said: float(rate) for said, rate in found.items() if isinstance(rate, int | float)}
    return {said: rate for said, rate in rates.items() if rate or said not in _RARE}


def say_rates(benchmark: Benchmark, side: Literal["native", "chip"]) -> str:
    """Such as "cut off 0.5%, without an answer 0%"; that nothing is known is said, too."""
    rates = rates_of(benchmark, side)
    return ", ".join(f"{name} {rate:.3g}%" for name, rate in rates.items()) or "rates not recorded"
