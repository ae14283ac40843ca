"""What tests of clients share: where things are, and how a client's program is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TINY = HERE.parents[1] / "examples" / "tiny" / "flagrelease-tiny-v4"
Run = Callable[..., str]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
