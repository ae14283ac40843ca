"""Groups tensors whose names differ only in numbers, so that 43 layers are one line for a reader."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flagrelease.diff.difference import TensorDifference
from flagrelease.records.manifest import TensorRecord

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class TensorKind:
    """Tensors of one kind that differ in the same way.

    Attributes:
        name: with `*` for every number.
        said: how they differ, such as `dtype F8_E4M3 to BF16, other bytes`.
        names: of the tensors.
    """

    name: str
    said: str
    names: tuple[str, ...]


def tensor_kinds(tensors: Sequence[TensorDifference]) -> list[TensorKind]:
    """The kinds, the most numerous first, then by name."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in tensors:
        groups.setdefault((_NUMBER.sub("*", one.name), said(one)), []).append(one.name)
    kinds = [TensorKind(name, words, tuple(names)) for (name, words), names in groups.items()]
    return sorted(kinds, key=lambda kind: (-len(kind.names), kind.name, kind.said))


def said(one: TensorDifference) -> str:
    """How a tensor differs, in words."""
    if one.before is None or one.after is None:
        there = one.after or one.before
        assert there is not None
        return f"{'added' if one.before is None else 'removed'}, {_form(there)}"
    parts = [f"dtype {one.before.dtype} to {one.after.dtype}"] if "dtype" in one.what else []
    parts += [f"shape {_shape(one.before)} to {_shape(one.after)}"] if "shape" in one.what else []
    parts += ["other bytes" if "bytes" in one.what else "same bytes"]
    return ", ".join(parts)


def _form(one: TensorRecord) -> str:
    return f"{one.dtype} {_shape(one)}"


def _shape(one: TensorRecord) -> str:
    return "x".join(map(str, one.shape)) or "scalar"
