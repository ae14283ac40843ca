"""What people write for SOURCE: a recipe's file or name, a checkpoint's folder, or its address on a hub."""

from __future__ import annotations

from pathlib import PurePath

from flagrelease.records.named import find_recipe
from flagrelease.source.hub.opening import place_of


def find_source(text: str) -> PurePath:
    """What `find_recipe` finds, or the address of a hub's repository.

    Raises:
        UsageError: there is no such file, recipe or hub.
    """
    return place_of(text) if "://" in text else find_recipe(text)
