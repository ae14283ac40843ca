"""A JSON document on one line, for readers with other ideas of a line than ours."""

from __future__ import annotations

import json
import re
from typing import Any

# what Unicode calls a line's end and JSON does not escape (Python's splitlines, which HTTP clients use on streams, cuts
# there), and halves of surrogate pairs, which UTF-8 cannot hold
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # kept: a stream writes a line for every token


def json_line(document: Any) -> str:
    """`document` without a line's end, in characters that UTF-8 can hold."""
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", _ENCODER.encode(document))
