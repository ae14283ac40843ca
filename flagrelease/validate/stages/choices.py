"""Values of options: parts of a baseline."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["logits", "continuations", "long-context", "benchmarks", "behaviour"]  # of a baseline
PARTS: tuple[Part, ...] = get_args(Part)
