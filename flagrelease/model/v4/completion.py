"""A completion taken apart while it is being written: reasoning, content, and tool calls whose arguments stream.

Nothing that a model writes raises. What DeepSeek's own parser takes for a call is one here too, with the exceptions
that docs/chat.md lists; everything else stays text, as it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flagrelease.model.v4.chat import END_THINK, EOS, TOOL_CALLS
from flagrelease.model.v4.dsml import Calls, Piece, ToolCall
from flagrelease.model.v4.encoded import Opening, Part
from flagrelease.model.v4.markup import begins
from flagrelease.model.v4.quoting import Quoting


@dataclass(frozen=True, slots=True)
class Said:
    """Text of one of the two parts. `at` is its place in the text that was read."""

    part: Part
    text: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered.

    `reasoning` is None where none was asked for and none was written. `as_taught` tells whether thought and calls have
    the very form that the prompt teaches; if not, they were understood nevertheless.
    """

    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    as_taught: bool = True


@dataclass(slots=True)
class _Trial:
    """A block inside a thought: calls if the message ends with it, else something that the model thought about.

    The end of the thought may stand behind it, if nothing else does: then the model has answered nothing but the block.
    `length`: of what was read as blocks. If something else stands behind, no calls begin in that much text.
    """

    _starts_line: bool
    _calls: Calls | None = None
    _rest: str = ""  # of the text in front of the end of the thought
    _held: str = ""  # what was not read yet
    _ended: bool = False  # the end of the thought came
    length: int = 0

    def push(self, text: str, *, final: bool) -> bool | None:
        """Whether they are calls; None while more text may tell."""
        self._held += text
        if not self._ended:
            before, end, behind = self._held.partition(END_THINK)
            self._ended = bool(end)
            if not end and not final:
                part = max((n for n in range(1, len(END_THINK)) if before.endswith(END_THINK[:n])), default=0)
                before, behind = before[: len(before) - part], before[len(before) - part :]
            self._held = behind
            if not self._possible(before, final=final or self._ended) or (self._ended and self._calls is not None):
                return False
        if self._ended and self._held.strip():
            return False
        return True if final else None

    def _possible(self, text: str, *, final: bool) -> bool:
        """Read on; tells whether everything so far is blocks. `final` if nothing follows that may belong to one."""
        self._rest += text
        self.length += len(text)
        while self._calls is not None or self._rest.strip():
            if self._calls is None:
                self._rest = self._rest.lstrip()
                begun = begins(self._rest, 0, final=final, starts_line=self._starts_line)
                if begun != "yes":
                    self.length -= len(self._rest) if begun == "no" else 0
                    return begun == "unsure"
                self._calls, self._starts_line = Calls(number=0), True
            _, rest = self._calls.push(self._rest, final=final)
            self._rest = rest or ""
            if rest is None:
                break
            self._calls = None
        return True


@dataclass(slots=True)
class CompletionStream:
    """Text in, pieces out as soon as it is sure what they are."""

    _part: Part
    _tools: bool  # calls are read as such
    as_taught: bool = True
    _read: int = 0  # characters, of which the last ones are held
    _held: str = ""
    _calls: Calls | None = None  # a block that has begun
    _trial: _Trial | None = None  # a block inside the thought
    _trial_at: int = 0  # where it begins in the held text
    _only_calls: bool = False  # the trial went well: nothing but calls is left in the thought
    _number: int = 0  # of calls that have begun
    _after_block: bool = False
    _quoting: Quoting = field(default_factory=Quoting)

    @classmethod
    def start(cls, opening: Opening) -> CompletionStream:
        """At the end of a prompt. Where it offered no tools, markup of calls is text, as with DeepSeek's parser."""
        return cls(opening.part, opening.tools)

    @property
    def part(self) -> Part:
        """What is being said, as far as the text has come."""
        return self._part

    def push(self, text: str) -> list[Said | Piece]:
        """What can be said now."""
        self._read += len(text)
        self._held += text
        return self._advance(text, final=False)

    def end(self, *, cut: bool = False) -> list[Said | Piece]:
        """What was held back.

        Args:
            cut: the answer met a length limit. Then the arguments of a call that is not complete stay a beginning of
                JSON, so that nobody carries out half of it; else the model ended there, and they are closed.
        """
        self._read -= len(EOS) * self._held.endswith(EOS)
        self._held = self._held.removesuffix(EOS)
        pieces = self._advance("", final=True)
        if self._calls is not None:
            pieces += self._calls.end(cut=cut)
            self._note(self._calls)
        return pieces

    def _advance(self, text: str, *, final: bool) -> list[Said | Piece]:
        """Read `text`, which is the end of the held text."""
        pieces: list[Said | Piece] = []
        place = 0
        if self._trial is not None:
            ended = self._trial.push(text, final=final)
            if ended is None:
                return pieces
            place = self._trial_at + max(1, self._trial.length)
            self._trial = None
            if ended:
                self._only_calls = True
                self._open_block(pieces, self._trial_at)
        while True:
            if self._calls is not None:
                new, rest = self._calls.push(self._held, final=final)
                pieces += new
                self._held = ""
                if rest is None:
                    return pieces
                self._note(self._calls)
                self._calls, self._held, self._after_block = None, rest, True
            elif not self._advance_text(pieces, place, final=final):
                return pieces
            place = 0

    def _note(self, calls: Calls) -> None:
        self._number, self.as_taught = calls.number, self.as_taught and calls.as_taught

    def _advance_text(self, pieces: list[Said | Piece], place: int, *, final: bool) -> bool:
        """Say text up to the next block or the end of the thought, none of which begins before `place`.

        Returns whether there was one.
        """
        thinks = self._part == "reasoning_content"
        while (found := self._next_mark(place, thinks)) >= 0:
            if self._held.startswith(END_THINK, found):
                if not self._after_block or self._held[:found].strip():
                    self._say(pieces, self._held[:found])
                self._held = self._held[found + len(END_THINK) :]
                self._part, self._quoting = "content", Quoting()
                return True
            starts_line = self._quoting.starts_line(self._held[:found])
            begun = begins(self._held, found, final=final, starts_line=starts_line)
            if begun == "unsure":
                break
            if begun == "no" or self._quoting.after(self._held[:found]):
                place = found + 1
                continue
            if thinks and not self._only_calls:
                trial = _Trial(starts_line)
                ended = trial.push(self._held[found:], final=final)
                if ended is None:
                    self._trial = trial
                    break
                if not ended:
                    place = found + max(1, trial.length)
                    continue
                self._only_calls = True
            self._open_block(pieces, found)
            return True
        keep = len(self._held) if final else self._sayable(found)
        if self._after_block and not self._held[:keep].strip():
            if final and self._held:  # only space after the calls
                self._held, self.as_taught = "", False
            return False
        self._say(pieces, self._held[:keep])
        self._held, self._trial_at = self._held[keep:], found - keep
        return False

    def _open_block(self, pieces: list[Said | Piece], found: int) -> None:
        before = self._held[:found]
        text = before
        for _ in range(2):  # the prompt teaches a blank line before the block
            text = text.removesuffix("\n")
        if before[len(text) :] != "\n\n" or not self._held.startswith(TOOL_CALLS, found) or self._part != "content":
            self.as_taught = False
        if self._after_block:
            self.as_taught = False
            text = text if text.strip() else ""
        self._say(pieces, text)
        self._calls = Calls(number=self._number)
        self._held = self._held[found:]

    def _next_mark(self, place: int, thinks: bool) -> int:
        marks = [
            self._held.find("<｜DSML｜", place) if self._tools else -1,
            self._held.find(END_THINK, place) if thinks else -1,
        ]
        return min((mark for mark in marks if mark >= 0), default=-1)

    def _sayable(self, unsure: int) -> int:
        """Characters of the held text that belong to no mark that may come; `unsure` is where one has begun, or -1."""
        end = unsure
        if end < 0:
            end = len(self._held)
            begun = self._held.rfind("<")  # every mark has this once, at its beginning
            marks = ("<｜DSML｜", EOS, *((END_THINK,) if self._part == "reasoning_content" else ()))
            if begun >= 0 and any(mark.startswith(self._held[begun:]) for mark in marks):
                end = begun
        for _ in range(2):
            end -= self._held[:end].endswith("\n")
        return end

    def _say(self, pieces: list[Said | Piece], text: str) -> None:
        if text:
            self._quoting.read(text)
            pieces.append(Said(self._part, text, self._read - len(self._held)))
            if self._after_block:
                self._after_block, self.as_taught = False, False


def parse_completion(text: str, opening: Opening) -> Completion:
    """Take apart what the model wrote after the prompt (with or without the final EOS).

    A text that ends inside its reasoning, because it met a length limit, is all reasoning.
    """
    stream = CompletionStream.start(opening)
    pieces = stream.push(text.removesuffix(EOS))
    return gather([*pieces, *stream.end()], opening, as_taught=stream.as_taught)


def gather(pieces: Sequence[Said | Piece], opening: Opening, *, as_taught: bool) -> Completion:
    """The whole that `pieces` make."""
    parts: dict[Part, list[str]] = {"content": [], "reasoning_content": []}
    names: list[str] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if isinstance(piece, Said):
            parts[piece.part].append(piece.text)
        else:
            if piece.name is not None:
                names.append(piece.name)
                arguments.append([])
            arguments[piece.number].append(piece.arguments)
    calls = tuple(ToolCall(name, "".join(text)) for name, text in zip(names, arguments, strict=True))
    reasoning = "".join(parts["reasoning_content"])
    shown = None if not opening.thinks and not reasoning else reasoning
    return Completion("".join(parts["content"]), shown, calls, as_taught)
