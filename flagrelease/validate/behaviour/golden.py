"""The chat encoding against the pairs of messages and text that a release carries in `encoding/tests`.

DeepSeek publishes them beside its weights, so they say what this very model was trained to read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.engine.efforts import read_efforts
from flagrelease.errors import FlagReleaseError
from flagrelease.model.chats import encode_messages
from flagrelease.model.v4.efforts import Effort

_INPUT = re.compile(r"test_input_(\d+)\.json")


@dataclass(frozen=True, slots=True)
class GoldenPairs:
    """How many there are, and the names of those that our encoding does not reproduce."""

    pairs: int
    differing: tuple[str, ...]


def check_golden_pairs(release: Path) -> GoldenPairs:
    """Encode the messages of every pair, with each effort that the release knows, and compare the text byte for byte.

    An input without output differs.
    """
    folder = release / "encoding" / "tests"
    efforts = list(read_efforts(release).by_mode.values())
    inputs = sorted(path for path in folder.glob("test_input_*.json") if _INPUT.fullmatch(path.name))
    differing = tuple(path.name for path in inputs if not _reproduces(path, efforts))
    return GoldenPairs(len(inputs), differing)


def _reproduces(path: Path, efforts: Sequence[Effort]) -> bool:
    expected = path.with_name(path.name.replace("input", "output")).with_suffix(".txt")
    try:
        document: Any = json.loads(path.read_bytes())
        wanted = expected.read_text(encoding="utf-8")
        given = {"messages": document} if isinstance(document, list) else document
        if not all(isinstance(message, dict) for message in given["messages"]):
            return False
        messages, tools = given["messages"], given.get("tools", ())
        texts = [encode_messages(messages, effort, tools, finished=True).text for effort in efforts]
    except (OSError, ValueError, KeyError, TypeError, FlagReleaseError):
        return False  # a pair that cannot be read or encoded is not reproduced
    return wanted in texts
