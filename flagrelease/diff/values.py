"""Differences of nested documents, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from flagrelease.diff.difference import ValueDifference


def value_differences(before: JsonValue, after: JsonValue) -> tuple[ValueDifference, ...]:
    """Every key that differs, in the order of the keys; lists are compared whole. A bare value has the key ``.

    `1`, `1.0` and `true` differ, as they do in JSON.
    """
    return entry_differences(dict(_flat("", before)), dict(_flat("", after)))


def entry_differences(left: Mapping[str, JsonValue], right: Mapping[str, JsonValue]) -> tuple[ValueDifference, ...]:
    """Every entry of a flat table that differs, in the order of the keys."""
    found = []
    for key in sorted(left.keys() | right.keys()):
        if key not in left:
            found.append(ValueDifference(key=key, what="added", after=right[key]))
        elif key not in right:
            found.append(ValueDifference(key=key, what="removed", before=left[key]))
        elif not _equal(left[key], right[key]):
            found.append(ValueDifference(key=key, what="changed", before=left[key], after=right[key]))
    return tuple(found)


def _flat(prefix: str, value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    """Nested values by their dotted keys. An empty object inside is a value, so that it is seen to come or go."""
    if isinstance(value, Mapping) and (value or not prefix):
        for name, inner in value.items():
            escaped = name.replace("\\", "\\\\").replace(".", "\\.")  # a dot inside a name is no step down
            yield from _flat(f"{prefix}.{escaped}" if prefix else escaped, inner)
    else:
        yield prefix, value


def _equal(left: JsonValue, right: JsonValue) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right
