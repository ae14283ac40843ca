"""The JSON Schema of recipes, which `recipes/recipe.schema.json` holds: editors check and complete a recipe by it.

It is made from `Recipe` itself, so that no key is in one and not in the other, and says what each key means in the
words of the classes. Rules between keys (no release twice, a stack that loads the format) are the model's alone.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flagrelease.records.recipe import Recipe

SCHEMA_NAME = "recipe.schema.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ENTRY = re.compile(r"^ {4}([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_SIZE = {"type": ["integer", "string"], "exclusiveMinimum": 0, "pattern": r"^\s*[0-9.]+\s*([KMGTkmgt][Ii]?[Bb])?\s*$"}


def recipe_schema() -> dict[str, Any]:
    """The schema, as draft 2020-12. Each section of a recipe is an object in `$defs`."""
    schema = Recipe.model_json_schema()
    _say_what_is_rewritten(schema)
    for section in (schema, *schema["$defs"].values()):
        summary, _, entries = section["description"].partition("\n\nAttributes:\n")
        section["description"] = " ".join(summary.split())
        meanings = {
            key: " ".join(meaning.split()) for keys, meaning in _ENTRY.findall(entries) for key in keys.split(", ")
        }
        for key, value in section.get("properties", {}).items():
            value.pop("title", None)
            if key in meanings:
                value["description"] = meanings[key]
    return {"$schema": _DIALECT, **schema, "title": "Recipe of flagrelease"}


def schema_text() -> str:
    """The shipped file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def _say_what_is_rewritten(schema: dict[str, Any]) -> None:
    """Pydantic cannot see what validators rewrite before it reads: sizes with units, one release without a list around
    it, `dtype` for `format`, and a benchmark whose preset has the other keys."""
    sections = schema["$defs"]
    sizes = sections["ConvertSpec"]["properties"]
    sizes["max_file_bytes"] = _SIZE | {"default": sizes["max_file_bytes"]["default"]}
    sizes["rank_part_bytes"] = {"anyOf": [_SIZE, {"type": "null"}], "default": None}
    release = {"$ref": "#/$defs/ReleaseSpec"}
    schema["properties"]["releases"]["additionalProperties"] = {
        "anyOf": [release, {"type": "array", "items": release, "minItems": 1}]
    }
    spec = sections["ReleaseSpec"]
    spec["properties"]["dtype"] = spec["properties"]["format"] | {"deprecated": True}
    spec["required"] = ["layout"]
    spec["oneOf"] = [{"required": ["format"]}, {"required": ["dtype"]}]
    benchmark = sections["BenchmarkRules"]
    benchmark["anyOf"] = [{"required": ["preset"]}, {"required": benchmark.pop("required")}]
