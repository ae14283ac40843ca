"""The chat encoding against the pairs of messages and text that a release carries in `encoding/tests`.

DeepSeek publishes them beside its weights, so they say what this very model was trained to read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.errors import FlagReleaseError
from flagrelease.model.v4.chat import Mode, encode_messages

_INPUT = re.compile(r"test_input_(\d+)\.json")


@dataclass(frozen=True, slots=True)
class GoldenPairs:
    """How many there are, and the names of those that our encoding does not reproduce."""

    pairs: int
    differing: tuple[str, ...]


def check_golden_pairs(release: Path) -> GoldenPairs:
    """Encode the messages of every pair and compare the text, byte for byte. An input without output differs."""
    folder = release / "encoding" / "tests"
    inputs = sorted(path for path in folder.glob("test_input_*.json") if _INPUT.fullmatch(path.name))
    differing = tuple(path.name for path in inputs if not _reproduces(path))
    return GoldenPairs(len(inputs), differing)


def _reproduces(path: Path) -> bool:
    expected = path.with_name(path.name.replace("input", "output")).with_suffix(".txt")
    try:
        document: Any = json.loads(path.read_bytes())
        wanted = expected.read_text(encoding="utf-8")
        given = {"messages": document} if isinstance(document, list) else document
        modes: tuple[Mode, ...] = ("chat", "thinking")
        if not all(isinstance(message, dict) for message in given["messages"]):
            return False
        texts = [encode_messages(given["messages"], mode, given.get("tools", ()), finished=True).text for mode in modes]
    except (OSError, ValueError, KeyError, TypeError, FlagReleaseError):
        return False  # a pair that cannot be read or encoded is not reproduced
    return wanted in texts
