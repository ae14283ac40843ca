"""What the user says in a chat at the terminal: turn by turn, with line editing and a history of what was typed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

HELP = (
    "Enter ends a turn. A line that ends with \\ goes on in the next one; pasted lines are one turn. Ctrl-C ends an "
    "answer, Ctrl-D the chat."
)
_PROMPT = "> "


class Turns:
    """The turns of standard input. At a terminal they are asked for; elsewhere each line is one."""

    def __init__(self) -> None:
        """Look at what standard input and output are, and switch line editing on where both are a terminal."""
        self.interactive = sys.stdin.isatty()
        self._edits = self.interactive and sys.stdout.isatty() and _switch_editing_on()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer refuses what is no text, in words

    def __iter__(self) -> Iterator[str]:
        """Give each turn, up to the end of input."""
        while (said := self._next()) is not None:
            if said.strip() or not self.interactive:
                yield said

    def _next(self) -> str | None:
        try:
            line = self._line(_PROMPT)
            while self.interactive and line is not None and line.endswith("\\"):
                more = self._line("")
                line = line[:-1] + "\n" + (more or "")
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            print(file=sys.stderr)
            return ""  # what was typed is dropped, as in a shell
        if line is None and self.interactive:
            print(file=sys.stderr)
        return line

    def _line(self, prompt: str) -> str | None:
        if self._edits:
            try:
                return input(prompt)
            except EOFError:
                return None
        if self.interactive:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None


def _switch_editing_on() -> bool:
    """Whether this Python has readline; `input` then uses it. What is pasted comes whole, with its line feeds."""
    try:
        import readline
    except ModuleNotFoundError:
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")
    return True
