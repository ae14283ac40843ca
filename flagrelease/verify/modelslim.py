"""quant_model_description.json, from which vllm-ascend learns what each tensor of a ModelSlim release is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flagrelease.formats.formats import INT8, MXFP8
from flagrelease.verify.expected import ExpectedWeight

FLOAT = "FLOAT"
_KINDS = {INT8: "W8A8_DYNAMIC", MXFP8: "W8A8_MXFP8"}


def problems(document: dict[str, Any], weights: Sequence[ExpectedWeight]) -> Iterator[str]:
    """Sentences about the description of a release that holds `weights`."""
    wanted = {form.name: kind_of(weight) for weight in weights for form in weight.forms}
    kinds = sorted(set(wanted.values()) - {FLOAT})
    top = {"version": "1.0.0", "group_size": 0, "metadata": {}, "model_quant_type": kinds[0] if kinds else FLOAT}
    for key, value in (top | wanted).items():
        if key not in document:
            yield f"{key!r} is missing, it is {value!r}"
        elif document[key] != value:
            yield f"{key!r} is {document[key]!r}, it must be {value!r}"
    for key in sorted(document.keys() - top.keys() - wanted.keys()):
        yield f"{key!r} is no tensor of this release"


def kind_of(weight: ExpectedWeight) -> str:
    """The word for the tensors of a weight."""
    return FLOAT if weight.scale is None else next(word for fmt, word in _KINDS.items() if fmt is weight.stored)
