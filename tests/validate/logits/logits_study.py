"""What the tests of the logits stage share; a plain module, since ranks import it in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.engine.v4.model import Model


@dataclass(frozen=True)
class Study:
    source: Path
    documents: Path
    release: Path
    baseline: Path
    model: Model = field(repr=False)  # of the release, sound
