"""Numbers in what a model wrote, in one form each: `18`, `1,080.50`, `\\frac{3}{4}`, `$18`, `18 dollars`."""

from __future__ import annotations

import re
from fractions import Fraction

from flagrelease.validate.exams.latex import right_of_equals, unwrap

_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*\{(\d{1,18})\}\s*\{(\d{1,18})\}|(-?)(\d{1,18})\s*/\s*(\d{1,18})")
_UNIT = r"(?:\s*(?:%|[A-Za-z][A-Za-z .]*))?"
_DECIMAL = re.compile(rf"([+-]?)\s*(\d{{1,18}}|\d{{1,3}}(?:,\d{{3}}){{1,5}})(\.\d{{1,18}})?{_UNIT}")
_TWO = re.compile(r"\b(?:or|and|to)\b|[或和与]")


def read_number(text: str) -> str | None:
    """A number alone or right of the last equals sign, with its unit if it has one, as text: `18`, `-3/4`, `10.5`.

    Equal numbers have the same text. Two numbers are none.
    """
    bare = (
        unwrap(text).replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\%", "%").replace("\\$", "$")
    )
    right = right_of_equals(bare)
    if right is None or _TWO.search(bare := right.strip(" \t\n*.").strip("$").strip()):
        return None
    if found := _FRACTION.fullmatch(bare):
        sign, over, under = (found[1], found[2], found[3]) if found[2] else (found[4], found[5], found[6])
        return None if int(under) == 0 else str(Fraction(int(sign + over), int(under)))
    if found := _DECIMAL.fullmatch(bare):
        return str(Fraction(f"{found[1]}{found[2].replace(',', '')}{found[3] or ''}"))
    return None
