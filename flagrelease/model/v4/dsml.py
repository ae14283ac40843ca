"""Blocks of tool calls in DeepSeek's markup, read while they are being written.

Besides the taught form this reads a missing, misspelt or damaged wrapper, other space between tags, missing or damaged
closing tags, repeated parameters, an empty block, an invoke that ends in itself, and one that holds a JSON object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flagrelease.model.spelling import Spelling
from flagrelease.model.v4.json_text import is_json, write_string
from flagrelease.model.v4.markup import (
    CLOSING,
    MOST_WRAPPERS,
    UNSURE,
    Awaited,
    Read,
    Tag,
    Verdict,
    begins_invoke,
    next_tag,
    read_tag,
    skip_space,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call. `arguments` is JSON text of an object, as in OpenAI's interface."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the call of that number, from 0; the first of a call has its name."""

    number: int
    arguments: str
    name: str | None = None


@dataclass(slots=True)
class Calls:
    """A block that has begun. `number` is that of its next call."""

    number: int
    spelling: Spelling
    as_taught: bool = True
    _held: str = ""
    _awaited: Awaited | None = None  # what comes behind the held text, until it is looked at
    _state: Literal["between", "invoke", "value"] = "between"
    _wrappers: int = 0  # that were opened, or are missing
    _empty: bool = True
    _keys: set[str] = field(default_factory=set)
    _is_text: bool = False
    _value: list[str] = field(default_factory=list)

    def push(self, text: str, *, final: bool) -> tuple[list[Piece], str | None]:
        """What can be said now, and the text behind the block if the block is over, else None."""
        pieces: list[Piece] = []
        if self._awaited is not None:
            come = self._awaited.push(text, final=final)
            if come is None:
                return pieces, None
            self._awaited, text = None, come
        self._held += text
        while True:
            step = {"between": self._between, "invoke": self._invoke, "value": self._in_value}[self._state]
            went_on = step(pieces, final=final)
            if went_on == "over":
                rest, self._held = self._held, ""
                return pieces, rest
            if went_on == "waits":
                return pieces, None

    def end(self, *, cut: bool) -> list[Piece]:
        """What is missing at the end of the text: with `cut`, half a value stays half."""
        self.as_taught = False
        pieces: list[Piece] = []
        if self._state == "value":
            if self._is_text:
                self._more(pieces, write_string(self._held)[1:-1])
            self._held = self._held if not self._is_text else ""
            if cut:
                return pieces
            self._value.append(self._held)
            self._close_value(pieces)
        if self._state != "between" and not cut:
            self._more(pieces, "}")
            self._state = "between"
        return pieces

    def _take(self, tag: Tag, space: str) -> None:
        """Consume up to the end of `tag`, before which the prompt teaches `space`."""
        at = skip_space(self._held, 0)
        if not tag.exact or self._held[:at] != space:
            self.as_taught = False
        self._held = self._held[tag.end :]

    def _more(self, pieces: list[Piece], arguments: str) -> None:
        if arguments:
            pieces.append(Piece(self.number - 1, arguments))

    def _between(self, pieces: list[Piece], *, final: bool) -> str:
        """Before the wrapper, or behind an invoke."""
        tag = next_tag(self._held, 0, self.spelling, final=final)
        if tag == UNSURE:
            return "waits"
        if not isinstance(tag, Tag):
            self.as_taught = False  # the wrapper is not closed
            return "over"
        if tag.kind == "open wrapper" and self._empty and self._wrappers < MOST_WRAPPERS:
            self._take(tag, "")
            self._wrappers += 1
            return "goes on"
        if tag.kind == "open wrapper" and not self._empty:
            behind = next_tag(self._held, tag.end, self.spelling, final=final)
            if behind == UNSURE:
                return "waits"
            if behind == "end":  # it was meant to close
                self._take(tag, "")
            self.as_taught = False
            return "over"
        if tag.kind == "close wrapper":
            self.as_taught = self.as_taught and not self._empty
            self._take(tag, "\n")
            return "over"
        begun = begins_invoke(self._held, tag, self.spelling, final=final)
        if begun in ("unsure", "object"):
            self._awaited = Awaited(len(self._held), self.spelling.end_invoke) if begun == "object" else None
            return "waits"
        if begun == "no":
            self.as_taught = False
            return "over"
        self.as_taught = self.as_taught and self._wrappers == 1
        self._take(tag, "\n")
        self._wrappers, self._empty = max(self._wrappers, 1), False
        self.number += 1
        self._keys = set()
        pieces.append(Piece(self.number - 1, "", tag.name))
        if tag.empty:
            self._more(pieces, "{}")
            return "goes on"
        at = skip_space(self._held, 0)
        if self._held.startswith("{", at):
            close = self._held.index(self.spelling.end_invoke)
            self._more(pieces, self._held[at:close].rstrip())
            self._held = self._held[close + len(self.spelling.end_invoke) :]
            self.as_taught = False
            return "goes on"
        self._more(pieces, "{")
        self._state = "invoke"
        return "goes on"

    def _invoke(self, pieces: list[Piece], *, final: bool) -> str:
        """Behind the opening of an invoke, or a parameter."""
        tag = next_tag(self._held, 0, self.spelling, final=final)
        if tag in (UNSURE, "end"):
            return "waits"
        if isinstance(tag, Tag) and tag.kind == "open parameter":
            self._take(tag, "\n")
            if tag.name in self._keys:
                self.as_taught = False
            self._more(pieces, (", " if self._keys else "") + write_string(tag.name) + ": " + '"' * tag.is_text)
            self._keys.add(tag.name)
            self._is_text, self._value, self._state = tag.is_text, [], "value"
            return "goes on"
        self._more(pieces, "}")
        self._state = "between"
        if isinstance(tag, Tag) and tag.kind == "close invoke":
            self._take(tag, "\n" if self._keys else self.spelling.empty)
        else:
            self.as_taught = False
        return "goes on"

    def _in_value(self, pieces: list[Piece], *, final: bool) -> str:
        """Up to a closing tag that something follows which belongs there: any other one is part of the value."""
        at = self._held.find(CLOSING)
        ends: Verdict = "unsure"
        while at >= 0:
            tag = read_tag(self._held, at, self.spelling, final=final)
            ends = self._ends_value(tag, final=final)
            if ends != "no":
                break
            at = self._held.find(CLOSING, at + 1)
        if at >= 0 and ends == "yes" and isinstance(tag, Tag):
            self._add(pieces, at)
            self._held = self._held[tag.end - at :] if tag.kind == "close parameter" else self._held
            self.as_taught = self.as_taught and tag.exact and tag.kind == "close parameter"
            self._close_value(pieces)
            return "goes on"
        if at < 0:
            part = max((n for n in range(1, len(CLOSING)) if self._held.endswith(CLOSING[:n])), default=0)
            at = len(self._held) - part
        elif ends == "object":
            self._awaited = Awaited(len(self._held) - at, self.spelling.end_invoke)
        self._add(pieces, at)
        return "waits"

    def _ends_value(self, tag: Read, *, final: bool) -> Verdict:
        if not isinstance(tag, Tag):
            return tag
        follows = next_tag(self._held, tag.end, self.spelling, final=final)
        if tag.kind == "close parameter":
            if isinstance(follows, Tag):
                return "no" if follows.kind in ("close parameter", "open wrapper") else "yes"
            return "yes" if follows == "end" else follows
        if tag.kind == "close invoke":  # the parameter is not closed; believed at the very end, or before another call
            if isinstance(follows, Tag) and follows.kind == "open invoke":
                return begins_invoke(self._held, follows, self.spelling, final=final)
            if isinstance(follows, Tag) and follows.kind == "close wrapper":
                follows = next_tag(self._held, follows.end, self.spelling, final=final)
            return "yes" if follows == "end" else "no" if isinstance(follows, Tag) else follows
        return "no"

    def _add(self, pieces: list[Piece], end: int) -> None:
        value, self._held = self._held[:end], self._held[end:]
        if self._is_text:
            self._more(pieces, write_string(value)[1:-1])
        else:
            self._value.append(value)

    def _close_value(self, pieces: list[Piece]) -> None:
        if self._is_text:
            self._more(pieces, '"')
        else:
            value = "".join(self._value)
            if is_json(value, 126):  # one level less: it stands in an object
                self._more(pieces, value.strip())
            else:
                self.as_taught = False
                self._more(pieces, write_string(value))
        self._state = "invoke"
