"""What the families share of saying why a checkpoint does not hold their model."""

from __future__ import annotations

from collections.abc import Collection


def other_count(stored: Collection[set[int]], said: int | None) -> int | None:
    """How many experts every block stores, if all store as many, numbered from 0 on, and not `said`; else None.

    `stored`: the numbers of each block's experts.
    """
    counts = {len(ids) if ids == set(range(len(ids))) else -1 for ids in stored}
    count = counts.pop() if len(counts) == 1 else -1
    return None if count in (-1, said) else count


def hint_of_transformers(name: str) -> str:
    """Says of a tensor that it is named as transformers names it; empty of any other."""
    if name.startswith("model."):
        return " (a name of transformers; DeepSeek's own names have no 'model.' prefix)"
    return ""
