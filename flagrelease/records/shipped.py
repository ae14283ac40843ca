"""The recipes that come with flagrelease, by the model that they are for."""

from __future__ import annotations

from importlib import resources

from flagrelease.records.recipe import Recipe, parse_recipe


def shipped_recipe(model: str) -> Recipe | None:
    """The recipe for `model`, as `DeepSeek-V4-Flash`; None if none is shipped."""
    for file in sorted(resources.files("flagrelease").joinpath("recipes").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            recipe = parse_recipe(file.read_text(encoding="utf-8"), file.name)
            if recipe.model == model:
                return recipe
    return None
