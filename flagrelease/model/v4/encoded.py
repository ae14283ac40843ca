"""A chat as the model reads it: special tokens that the encoding wrote are told from those that a message quotes.

A user, a tool or a system message may spell `</think>` or `<｜Assistant｜>` out. That is text, and its tokens are
those of the characters: else whoever reaches a chat could close the reasoning or open an assistant's turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from flagrelease.model.spelling import OF_V4, Spelling

Part = Literal["reasoning_content", "content"]

_SPECIAL = re.compile(r"<｜[^<>｜]+｜>|｜DSML｜|</?think>")


class Own(str):
    """Text that the encoding itself writes: special tokens in it are meant."""

    __slots__ = ()


class Placeholder(Own):
    """The token that stands for an image. `part` is the part of the message that has it."""

    __slots__ = ("part",)
    part: dict[str, Any]


def placeholder(token: str, part: dict[str, Any]) -> Placeholder:
    """The token that stands for the image in `part` of a message."""
    made = Placeholder(token)
    made.part = part
    return made


@dataclass(frozen=True, slots=True)
class Opening:
    """How an answer begins: in which part, whether the model was told to think, and whether it was offered tools.

    `spelling` is that of the calls it may make.
    """

    part: Part
    thinks: bool
    tools: bool
    spelling: Spelling = OF_V4


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A prompt.

    `pieces` are texts, each with whether it is one special token; no two neighbours are plain. `opening` is how the
    model's answer begins. `images` are the parts of messages that placeholders stand for, in their order.
    """

    pieces: tuple[tuple[str, bool], ...]
    opening: Opening
    images: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, texts: Iterable[str], opening: Opening) -> EncodedChat:
        """The prompt that `texts` make, of which only those that are `Own` hold special tokens."""
        pieces: list[tuple[str, bool]] = []
        plain: list[str] = []
        images: list[dict[str, Any]] = []
        for text in texts:
            place = 0
            images += [text.part] if isinstance(text, Placeholder) else []
            for found in _SPECIAL.finditer(text) if isinstance(text, Own) else ():
                plain.append(text[place : found.start()])
                pieces += [("".join(plain), False), (found[0], True)]
                plain, place = [], found.end()
            plain.append(text[place:])
        pieces.append(("".join(plain), False))
        return cls(tuple(piece for piece in pieces if piece[0]), opening, tuple(images))

    @property
    def text(self) -> str:
        """The whole, in which a quoted special token looks like a real one."""
        return "".join(text for text, _ in self.pieces)
