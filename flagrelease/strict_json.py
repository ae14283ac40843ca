"""JSON as other readers understand it: what Python's parser takes beyond that is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def parse_json(raw: bytes) -> Any:
    """Parse JSON that repeats no key and holds no NaN, infinity or -0.

    Raises:
        ValueError: it is not such JSON, not UTF-8, or nested too deeply.
    """
    # A hook for integers is a call a number, of which the headers of V4-Pro have 600,000. Most documents need none.
    integer = _integer if b"-0" in raw else None
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_pairs, parse_constant=_no_constant, parse_int=integer
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} appears twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if text == "-0":  # a float to other readers
        raise ValueError("-0 is not an integer")
    return int(text)
