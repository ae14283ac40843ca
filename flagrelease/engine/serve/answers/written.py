"""Documents that are written piece by piece: lists of log-probabilities can be a hundred times their answer's text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fastapi.responses import Response, StreamingResponse

from flagrelease.engine.json_line import json_line

_PIECE = 1 << 16  # characters between two of which others have their turn


class Series:
    """A list of a document whose entries are made while it is written, and so are never all there."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        """`make` begins the list anew."""
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        """The entries."""
        return self._make()


class Written(str):
    """A value of a document that is JSON already."""

    __slots__ = ()


def written(document: Any) -> Iterator[str]:
    """The JSON of `document`, whose objects may hold `Series` and `Written` at any depth of objects and lists."""
    if isinstance(document, Written):
        yield document
    elif isinstance(document, dict) and document:
        for n, (key, value) in enumerate(document.items()):
            yield f"{', ' if n else '{'}{json_line(key)}: "
            yield from written(value)
        yield "}"
    elif isinstance(document, Series | list):
        yield "["
        for n, value in enumerate(document):
            yield ", " if n else ""
            yield from written(value)
        yield "]"
    else:
        yield json_line(document)


def respond_with(document: str | Iterator[str]) -> Response:
    """JSON as a response; what is longer than a piece is sent while it is made."""
    pieces = _gathered(iter((document,)) if isinstance(document, str) else document)
    first, second = next(pieces), next(pieces, None)
    if second is None:
        return Response(first, media_type="application/json")
    return StreamingResponse(_in_turns([first, second], pieces), media_type="application/json")


def _gathered(pieces: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


async def _in_turns(begun: list[str], rest: Iterator[str]) -> AsyncIterator[str]:
    for piece in begun:
        yield piece
    for piece in rest:
        await asyncio.sleep(0)
        yield piece
