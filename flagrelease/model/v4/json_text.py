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
# the end of a text in which a token has begun: more may come
_PART = re.compile(r'[ \t\n\r]*(?:"(?:[^"\\\x00-\x1f]|\\.)*\\?|[-+.0-9eE]*|[a-z]*)\Z')
_SPACE = " \t\n\r"
_ANY_SPACE = re.compile("[ \t\n\r]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_json(text: str, deepest: int = DEEPEST) -> bool:
    """Whether every JSON reader takes `text`: no NaN, no half of a surrogate pair, at most `deepest` levels."""
    return _read(text, 0, deepest) == len(text)


def is_json_between(text: str, place: int, end: int) -> bool:
    """The same of a part of `text`, of which nothing is copied."""
    return _read(text, place, DEEPEST) == end


def may_become_json(text: str, place: int, behind: str) -> bool:
    """Whether more text may complete what stands at `place` to JSON with `behind`, which is not there, behind it."""
    end = _read(text, place, DEEPEST, whole=False)
    return end is not None and (behind.startswith(text[end : end + len(behind)]) or _PART.match(text, end) is not None)


def _read(text: str, place: int, deepest: int, *, whole: bool = True) -> int | None:
    """The place behind a JSON value that begins at `place`, and behind the space that follows it.

    None: it is none. If not `whole`, a beginning of one will do; what cannot be read is left.
    """
    open_: list[str] = []
    wants = "value"  # or "key", "first key", "first value", "colon", "next"
    while wants != "next" or open_:
        token = _TOKEN.match(text, place)
        if token is None:
            return None if whole else place
        place, mark = token.end(), token["mark"]
        if wants in ("value", "first value") and mark in ("[", "{"):
            open_.append(mark)
            if len(open_) > deepest:
                return None
            wants = "first value" if mark == "[" else "first key"
        elif (wants in ("first value", "first key") or (wants == "next" and open_)) and mark in ("]", "}"):
            if mark != ("]" if open_.pop() == "[" else "}"):
                return None
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
            return None
    end = _ANY_SPACE.match(text, place)
    return place if end is None else end.end()


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
