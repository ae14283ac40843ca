"""JSON schemas of requests: what is refused before they are compiled, and how answers may be spaced.

Which keywords are enforced is llguidance's matter; it refuses those that it cannot enforce by name.
"""

from __future__ import annotations

import json
from typing import Any

from flagrelease.errors import UsageError

Schema = dict[str, Any] | bool

MOST_CHARACTERS, MOST_OBJECTS, MOST_VALUES, LONGEST_TEXT = 200_000, 2_000, 12_000, 10_000
_SPACES = r"[ \t\n\r]{1,64}"  # between JSON's tokens: without a bound a model can write space until its limit


def check_schema(schema: Any) -> None:
    """Refuse a schema, or a list of them, that would take long to compile.

    The walk ends at the limit that it meets: a body can hold sixteen megabytes.

    Raises:
        UsageError: names the limit.
    """
    objects = values = characters = 0
    left: list[Any] = [schema]
    while left:
        value = left.pop()
        values += 1
        if isinstance(value, str):
            characters += len(value)
            if len(value) > LONGEST_TEXT:
                raise UsageError(f"a schema with a text of {len(value)} characters; at most {LONGEST_TEXT} are taken")
        elif isinstance(value, dict):
            objects += 1
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        for kind, count, most in (
            ("characters", characters, MOST_CHARACTERS),
            ("objects", objects, MOST_OBJECTS),
            ("values", values + len(left), MOST_VALUES),
        ):
            if count > most:
                raise UsageError(f"a schema with more than {most} {kind}")


def json_text(schema: Schema, *, lenient: bool = False) -> str:
    """The schema for llguidance. `lenient`: keywords that it cannot enforce are left out instead of refused."""
    options = {"whitespace_pattern": _SPACES, "lenient": lenient}
    whole = {"anyOf": [schema]} if isinstance(schema, bool) else schema
    return json.dumps({**whole, "x-guidance": options}, ensure_ascii=False)
