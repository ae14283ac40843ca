"""What changed between two documents, in words: recipes, rules, what a baseline was recorded for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHOWN = 4  # changes in a sentence


def changes(was: Any, now: Any, at: str = "") -> list[str]:
    """Every value that differs, as "logits.rounded: 6 -> 8"; a list counts as one value, an absent key as nothing."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = [*was, *(key for key in now if key not in was)]
        found = (changes(was.get(key), now.get(key), f"{at}.{key}" if at else str(key)) for key in keys)
        return [one for several in found for one in several]
    return [] if was == now else [f"{at}: {_shown(was)} -> {_shown(now)}"]


def in_a_sentence(found: list[str]) -> str:
    """The first few."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
