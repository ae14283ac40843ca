"""LaTeX as far as answers need it: boxes, and commands that only wrap a text."""

from __future__ import annotations

import re

_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|boldsymbol|bf|rm)\s*\{([^{}]*)\}")
_TOKEN = re.compile(
    r"(?P<box>\\f?box(?:ed)?(?![A-Za-z])\s*)(?:\{|(?P<bare>[A-D](?![A-Za-z])|-?\d+))|\\.|[{}]", re.DOTALL
)
_GROUP = re.compile(r"\([^()]*\)|\{[^{}]*\}")
_SECOND = re.compile(  # what stands between two answers, such as x = 12 or x = 13
    r",(?!\d{3}(?!\d))|[;，；、\n]|\\q?quad|\\(?:lor|land|vee|wedge)(?![a-z])|\\\\|\b(?:or|and)\b|[或和与且]",
    re.IGNORECASE,
)
_UNEQUAL = "<>!≠≤≥~"
_NESTED = 4


def unwrap(text: str) -> str:
    """Without `\\text{...}` and its like, also a few inside each other."""
    for _ in range(_NESTED):
        text = _WRAPPER.sub(r"\1", text)
    return text


def boxes(text: str) -> list[tuple[int, int]]:
    """Where the insides of all boxes begin and end, in the order in which they open; one that is not closed is none."""
    found: list[tuple[int, int]] = []
    opened: list[int | None] = []  # where the inside of each open brace begins, if the brace is a box's
    for token in _TOKEN.finditer(text):
        if token["bare"] is not None:
            found.append(token.span("bare"))
        elif token[0] == "{" or token["box"]:
            opened.append(token.end() if token["box"] else None)
        elif token[0] == "}" and opened and (begin := opened.pop()) is not None:
            found.append((begin, token.start()))
    return [(begin, end) for begin, end in sorted(found) if text[begin:end].strip()]


def last_box(text: str) -> str | None:
    """The inside of the last box that is not empty."""
    found = boxes(text)
    return text[slice(*found[-1])].strip() if found else None


def after_last_box(text: str) -> str:
    """What follows the last box that is not empty; all of a text without one."""
    found = boxes(text)
    return text[max(end for _, end in found) :] if found else text


def right_of_equals(text: str) -> str | None:
    """What stands right of the last equals sign of one equation, or the text where there is none.

    None where the text is not one equation: `x = 12 or x = 13`, `x = 12, y = 13`, `x >= 5`.
    """
    left, sign, right = text.rpartition("=")
    if not sign:
        return text
    for _ in range(_NESTED):
        left = _GROUP.sub("", left)  # gcd(12, 18) = 6 is one equation
    one = left.rstrip()
    return right if one and one[-1] not in _UNEQUAL and not _SECOND.search(left) else None
