"""The tags of DeepSeek's markup for tool calls, and where a block of them begins.

The prompt teaches

    <｜DSML｜tool_calls>
    <｜DSML｜invoke name="f">
    <｜DSML｜parameter name="a" string="true">text</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜tool_calls>

as V4 spells it; V4.1 has a space behind `｜DSML｜`, and `calls`. Either is read, and `exact` if the prompt taught it.

A block begins where a named invoke has something that belongs into it: so a tag that a sentence mentions is no block.
Tags that models damage at long context are read as what they were meant to be, where the tags around them tell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from flagrelease.model.spelling import DSML, Spelling
from flagrelease.model.v4.json_text import is_json_between, may_become_json

Verdict = Literal["yes", "no", "unsure", "object"]  # "object": unsure, until the end of an invoke comes
Kind = Literal["open invoke", "close invoke", "open parameter", "close parameter", "open wrapper", "close wrapper"]

_LONGEST = 512  # characters of a name
_LONGEST_TAG = 4096  # characters: more than four attributes can have, each with 256 of space and 32 of its own name
_ATTRIBUTE = rf'\s{{1,256}}[a-z]{{1,32}}="[^"]{{0,{_LONGEST}}}"'
_TAG = re.compile(rf"<(/?){DSML} ?([A-Za-z_]{{1,32}})((?:{_ATTRIBUTE}){{0,4}})\s{{0,256}}(/?)>")
_BEGUN_ATTRIBUTE = rf'\s{{1,256}}(?:[a-z]{{1,32}}(?:=(?:"[^"]{{0,{_LONGEST}}})?)?)?'
_BEGINNING = re.compile(rf"(?: ?|[ ]?[A-Za-z_]{{1,32}}(?:{_ATTRIBUTE}){{0,4}}(?:{_BEGUN_ATTRIBUTE})?/?)")
_NEXT_MAY_COME = r"(?:<(?:/?(?:｜(?:D(?:S(?:M(?:L)?)?)?)?)?)?)?"
# a closing tag without its bracket, in front of another tag
_UNCLOSED = re.compile(rf"</{DSML} ?([A-Za-z_]{{1,32}})\s{{0,256}}(?=</?{DSML})")
_UNCLOSED_MAY_COME = re.compile(rf" ?[A-Za-z_]{{0,32}}\s{{0,256}}{_NEXT_MAY_COME}")
# what is left of a wrapper, alone on its line in front of another tag
_DAMAGED = re.compile(rf"<{DSML}(?! ?(?:invoke|parameter)\b)[^\n｜]{{0,64}}\s{{1,256}}(?=<{DSML})")
_FARTHEST = 400  # characters up to that tag; the pattern takes long to find that there is none
_DAMAGED_MAY_COME = re.compile(rf"[^\n｜]{{0,64}}\s{{0,256}}{_NEXT_MAY_COME}")
_VALUE = re.compile(r'([a-z]+)="([^"]*)"')
_SPACE = re.compile(r"\s{0,1024}")  # more is no space between tags: it would be read again with every token
CLOSING = f"</{DSML}"
_LEAST_AWAITED = 256
MOST_WRAPPERS = 2  # a damaged one, and the one that was meant


@dataclass(frozen=True, slots=True)
class Tag:
    """One of the markup. `end` is where the text behind it begins; `exact`: it is spelt as taught."""

    kind: Kind
    end: int
    name: str = ""
    is_text: bool = False
    exact: bool = True
    empty: bool = False  # an invoke that ends in itself, with "/>"


_NO: Final = "no"
UNSURE: Final = "unsure"
Read = Tag | Literal["no", "unsure"]


def read_tag(text: str, place: int, spelling: Spelling, *, final: bool, damaged: bool = True) -> Read:
    """The tag at `place`; with `damaged` also what is left of a wrapper there, which begins a line."""
    if (match := _TAG.match(text, place)) is None:
        if (unclosed := _UNCLOSED.match(text, place)) is not None:
            kinds: dict[str, Kind] = {"invoke": "close invoke", "parameter": "close parameter"}
            return Tag(kinds.get(unclosed[1], "close wrapper"), unclosed.end(), exact=False)
        near = damaged and text.find(f"<{DSML}", place + 1, place + _FARTHEST) >= 0
        if near and (left := _DAMAGED.match(text, place)) is not None:
            return Tag("open wrapper", left.end(), exact=False)
        become = not final and _may_become_tag(text[place : place + _LONGEST_TAG], damaged=damaged)
        return UNSURE if become else _NO
    word = match[2]
    if match[4] and (match[1] or word != "invoke"):
        return _NO
    values = dict(_VALUE.findall(match[3]))
    if word not in ("invoke", "parameter"):
        if values:
            return _NO
        kind: Kind = "close wrapper" if match[1] else "open wrapper"
        return Tag(kind, match.end(), exact=match[0] == f"<{match[1]}{DSML}{spelling.calls}>")
    spelt = spelling.invoke if word == "invoke" else spelling.parameter
    if match[1]:
        closed: Kind = "close invoke" if word == "invoke" else "close parameter"
        return Tag(closed, match.end(), exact=match[0] == spelling.closing(spelt)) if not values else _NO
    name = values.get("name", "")
    if not name:  # an opening tag where the closing one belongs
        return Tag("close invoke", match.end(), exact=False) if word == "invoke" and not values else _NO
    taught = f'{spelling.opening(spelt)} name="{name}"' + (
        ">" if word == "invoke" else f' string="{values.get("string")}">'
    )
    exact = match[0] == taught and values.get("string", "true") in ("true", "false") and not match[4]
    opened: Kind = "open invoke" if word == "invoke" else "open parameter"
    return Tag(opened, match.end(), name, values.get("string") == "true", exact, bool(match[4]))


def _may_become_tag(text: str, *, damaged: bool) -> bool:
    for lead in (f"<{DSML}", CLOSING):
        if lead.startswith(text):
            return True
        if text.startswith(lead):
            forms = [_BEGINNING]
            if lead == CLOSING:
                forms.append(_UNCLOSED_MAY_COME)
            elif damaged:
                forms.append(_DAMAGED_MAY_COME)
            return any(form.fullmatch(text, len(lead)) is not None for form in forms)
    return False


def next_tag(text: str, place: int, spelling: Spelling, *, final: bool) -> Read | Literal["end"]:
    """The tag behind the space at `place`; "end" if the whole text ends there."""
    place = skip_space(text, place)
    if place == len(text):
        return "end" if final else UNSURE
    return read_tag(text, place, spelling, final=final)


def skip_space(text: str, place: int) -> int:
    """The place of the first character from `place` on that is no space between tags."""
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def begins(text: str, place: int, spelling: Spelling, *, final: bool, starts_line: bool = True) -> Verdict:
    """Whether a block of calls begins at `place`; `final` if no text will follow.

    Only where a line starts, what is left of a damaged wrapper begins one: within a line it is a mention.
    """
    tag: Read | Literal["end"] = read_tag(text, place, spelling, final=final, damaged=starts_line)
    for _ in range(MOST_WRAPPERS):
        if isinstance(tag, Tag) and tag.kind == "open wrapper":
            tag = next_tag(text, tag.end, spelling, final=final)
            if isinstance(tag, Tag) and tag.kind == "close wrapper":
                return "yes"
    if not isinstance(tag, Tag):
        return "unsure" if tag == UNSURE else "no"
    return begins_invoke(text, tag, spelling, final=final)


def begins_invoke(text: str, tag: Tag, spelling: Spelling, *, final: bool) -> Verdict:
    """Whether `tag`, of `text`, opens an invoke that holds something."""
    if tag.kind != "open invoke":
        return "no"
    place = skip_space(text, tag.end)
    if tag.empty:
        behind = next_tag(text, tag.end, spelling, final=final)
        return "yes" if isinstance(behind, Tag) or behind == "end" else behind
    if text.startswith("{", place):
        return _holds_object(text, place, spelling.end_invoke, final=final)
    inner = next_tag(text, tag.end, spelling, final=final)
    if isinstance(inner, Tag):
        return "no" if inner.kind in ("open wrapper", "close parameter") else "yes"
    return "unsure" if inner == UNSURE else "no"


def _holds_object(text: str, place: int, end: str, *, final: bool) -> Verdict:
    close = text.find(end, place)
    if close >= 0:
        return "yes" if is_json_between(text, place, close) else "no"
    return "object" if not final and may_become_json(text, place, end) else "no"


@dataclass(slots=True)
class Awaited:
    """Text behind an object that has begun. It is looked at when the end of an invoke is in it, or when it has become
    as long as what stands in front of it: then the object may have turned out to be none."""

    before: int  # characters in front of it
    end: str  # of an invoke
    _pieces: list[str] = field(default_factory=list)
    _size: int = 0
    _tail: str = ""  # in which it may have begun

    def push(self, text: str, *, final: bool) -> str | None:
        """All of it, if it is to be looked at."""
        self._pieces.append(text)
        self._size += len(text)
        self._tail = self._tail[1 - len(self.end) :] + text
        if final or self.end in self._tail or self._size > max(self.before, _LEAST_AWAITED):
            return "".join(self._pieces)
        return None
