"""Recipes by name: every command that takes a recipe also takes the name of one that comes with flagrelease."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path

from flagrelease.errors import UsageError

_PREFIXES = ("deepseek-v4-", "deepseek-")  # V4's models go without the number, those of other families with it


@cache
def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with flagrelease, by the names of their files without `.yaml`, sorted."""
    folder = Path(str(resources.files("flagrelease"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_names() -> list[str]:
    """What a shipped recipe can be called: `deepseek-v4-flash`, and `flash` for short."""
    names = list(shipped_recipes())
    return [short for name in names if (short := short_name(name)) != name] + names


def short_name(name: str) -> str:
    """`flash` of `deepseek-v4-flash`, `v4.1-flash` of `deepseek-v4.1-flash`."""
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


def find_recipe(text: str) -> Path:
    """The file of a recipe: what lies at the path `text`, or else the shipped recipe of that name.

    Letters may be large or small, so that the model's own name, `DeepSeek-V4-Flash-0731`, works too.

    Raises:
        UsageError: there is no such file, and no shipped recipe has this name; the message has those there are.
    """
    path, shipped = Path(text), shipped_recipes()
    if path.exists():
        return path
    name = text.lower()
    for stem, file in shipped.items():
        if name in (stem, short_name(stem)):
            return file
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"{text}: no such file or folder, and no recipe of this name is shipped ({', '.join(shipped)}){hint}"
    )


def complete_recipe(incomplete: str) -> list[str]:
    """For a shell's completion: the names that begin so. Files are completed by the shell itself."""
    return [name for name in recipe_names() if name.startswith(incomplete.lower())]
