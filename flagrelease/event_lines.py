"""Lines of a stream of server-sent events."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")


class EventLines:
    """Cuts the bytes of a stream into lines, wherever the network cut them into pieces.

    A line ends at CR, LF or CRLF and nowhere else (HTML standard, "Server-sent events"). The `aiter_lines` of httpx2
    also cuts where `str.splitlines` does, at U+2028, U+2029 and U+0085 among others. A JSON string may hold those three
    as they are, so a correct answer would look like garbage.
    """

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._rest = b""
        self._after_cr = False

    def push(self, piece: bytes) -> list[str]:
        """The lines that end inside `piece`, without their ends.

        Raises:
            UnicodeDecodeError: a line is not UTF-8, which every such stream has to be.
        """
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")  # the second half of a CRLF whose line has been returned
        if piece:
            self._after_cr = piece.endswith(b"\r")
        *whole, self._rest = _LINE_END.split(self._rest + piece)
        return [line.decode("utf-8") for line in whole]

    def end(self) -> list[str]:
        """The last line, if the stream stopped before that line's end.

        Raises:
            UnicodeDecodeError: as `push`.
        """
        return [self._rest.decode("utf-8")] if self._rest else []
