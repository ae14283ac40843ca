"""`Defect`: one planted defect, and what must be found of it.

Steps of making a release: `whole`: before tensors are cut, so manifest, ranks and files agree on the wrong bytes (a bug
of the converter); `ranks`: after cutting, so the manifest's digests are right and the ranks' files wrong; `folder`:
before files are recorded; `manifest`: in the manifest alone; `after`: in the finished release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Defect:
    """`fails`: the checks that fail, no others. `says`: one of them, and text of a finding of it. `release`:
    dtype-layout, with the o-group mode or the number of parts where that matters."""

    name: str
    step: str
    plant: Callable[[Any], None]
    fails: str
    says: str
    release: str = "bf16-hf"
