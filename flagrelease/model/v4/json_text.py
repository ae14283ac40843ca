"""JSON as text: what a model wrote as a value is checked and handed on as it is, never read into numbers and back.

Reading would change or refuse what JSON allows: Python's reader raises on 5,000 digits and on 2,000 brackets, and
rounds long fractions.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 127  # levels of arrays and objects, as DeepSeek's own reader takes; many readers end there

_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = rf'\\["\\/bfnrt]|{_HIGH}{_LOW}|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{{4}}'
_STRING = rf'"(?:[^"\\\x00-\x1f\ud800-\udfff]|{_ESCAPE})*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_TOKEN = re.compile(rf"[ \t\n\r]*(?:(?P<string>{_STRING})|(?P<scalar>{_NUMBER}|true|false|null)|(?P<mark>[][{{}},:]))")
_SPACE = " \t\n\r"
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_json(text: str, deepest: int = DEEPEST) -> bool:
    """Whether every JSON reader takes `text`: no NaN, no half of a surrogate pair, at most `deepest` levels."""
    text = text.rstrip(_SPACE)
    open_: list[str] = []
    wants = "value"  # or "key", "first key", "first value", "colon", "next"
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            return False
        place, mark = token.end(), token["mark"]
        if wants in ("value", "first value") and mark in ("[", "{"):
            open_.append(mark)
            if len(open_) > deepest:
                return False
            wants = "first value" if mark == "[" else "first key"
        elif (wants in ("first value", "first key") or (wants == "next" and open_)) and mark in ("]", "}"):
            if mark != ("]" if open_.pop() == "[" else "}"):
                return False
            wants = "next"
        elif wants in ("value", "first value") and mark is None:
            wants = "next"
        elif wants in ("key", "first key") and token["string"] is not None:
            wants = "colon"
        elif wants == "colon" and mark == ":":
            wants = "value"
        elif wants == "next" and open_ and mark == ",":
            wants = "value" if open_[-1] == "[" else "key"
        else:
            return False
    return wants == "next" and not open_


def read_object(text: str) -> dict[str, Any] | None:
    """The object that `text` is, or None if it is none or holds a number that Python cannot keep."""
    if not (text.lstrip(_SPACE).startswith("{") and is_json(text)):
        return None
    try:
        value: dict[str, Any] = json.loads(text)
        json.dumps(value, allow_nan=False)  # 1e999 was read as infinity
    except ValueError:
        return None
    return value


def write_string(text: str) -> str:
    """`text` as a JSON string, in characters that UTF-8 can hold."""
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(text, ensure_ascii=False))
