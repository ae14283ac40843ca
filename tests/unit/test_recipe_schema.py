"""The JSON Schema of recipes says what `Recipe` takes, and docs/recipes.md lists every key of it.

After a change of `Recipe`: python tests/unit/test_recipe_schema.py writes both again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flagrelease.errors import UsageError
from flagrelease.records.recipe import parse_recipe
from flagrelease.records.recipe_schema import SCHEMA_NAME, recipe_schema, schema_text

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*ROOT.glob("recipes/*.yaml"), ROOT / "examples/demo.yaml"])
PAGE, BEGIN, END = ROOT / "docs/recipes.md", "<!-- keys -->\n", "<!-- end of keys -->\n"
VALIDATOR = jsonschema.Draft202012Validator(recipe_schema())


def key_tables() -> str:
    """Every section of a recipe as a table, for the page."""
    schema, text = recipe_schema(), ""
    for name, section in {"Recipe": schema, **schema["$defs"]}.items():
        text += (
            f"\n### {name}\n\n{section['description']}\n\n| key | value | default | what it is |\n|---|---|---|---|\n"
        )
        for key, value in section["properties"].items():
            needed = key in section.get("required", ())
            default = "**needed**" if needed else _short(value.get("default"))
            assert "description" in value, f"the docstring of {name} does not say what {key} is (under Attributes:)"
            text += f"| `{key}` | {_kind(value)} | {default} | {value['description'].replace('|', chr(92) + '|')} |\n"
    return text


def _kind(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value:
        return " or ".join(_kind(one) for one in value["anyOf"] if one != {"type": "null"})
    kind = value["type"] if isinstance(value["type"], str) else "size (`5 GB`, `48 GiB`, bytes)"
    if kind == "array":
        return f"list of {_kind(value['items'])}" if "items" in value else "list"
    if kind == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"by name: {_kind(value['additionalProperties'])}"
    return kind


def _short(default: object) -> str:
    return "" if default is None or isinstance(default, dict) else f"`{default}`" if default != [] else "none"


def test_the_shipped_file_and_the_page_are_those_of_the_model() -> None:
    hint = "python tests/unit/test_recipe_schema.py writes them again"
    assert (ROOT / "recipes" / SCHEMA_NAME).read_text() == schema_text(), hint
    assert PAGE.read_text().partition(BEGIN)[2].partition(END)[0] == key_tables(), hint
    VALIDATOR.check_schema(recipe_schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_follow_the_schema(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text()))


def keys_of(document: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield (*path, key)
        yield from keys_of(value, (*path, key))


def planted(document: dict[str, Any], path: tuple[Any, ...], how: str) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    if how == "misspelt":
        inner[f"{path[-1]}x"] = inner.pop(path[-1])
    else:
        inner[path[-1]] = {"unknown": [None]}
    return changed


@pytest.mark.parametrize("how", ["misspelt", "another type"])
def test_whatever_is_misspelt_or_of_another_type_is_refused_by_both(how: str) -> None:
    document = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text())
    document["releases"] = {"nvidia": document["releases"]["nvidia"]}
    free = {
        ("releases",),
        ("validation", "benchmarks"),
    }  # their keys are names: other ones are refused by the model alone
    for path in keys_of(document):
        if how == "misspelt" and (isinstance(path[-1], int) or path[:-1] in free):
            continue
        changed = planted(document, path, how)
        with pytest.raises(UsageError):
            parse_recipe(yaml.safe_dump(changed), "planted")
        assert not VALIDATOR.is_valid(changed), path


@pytest.mark.parametrize(
    ("size", "taken"), [("5 GB", True), ("48GiB", True), (7, True), ("five", False), (0, False), ("5 XB", False)]
)
def test_sizes(size: object, taken: bool) -> None:
    document = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text()) | {"convert": {"max_file_bytes": size}}
    assert VALIDATOR.is_valid(document) == taken
    if taken:
        parse_recipe(yaml.safe_dump(document), "size")
    else:
        with pytest.raises(UsageError):
            parse_recipe(yaml.safe_dump(document), "size")


if __name__ == "__main__":
    (ROOT / "recipes" / SCHEMA_NAME).write_text(schema_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + key_tables() + END + rest.partition(END)[2])
