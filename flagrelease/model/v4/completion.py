"""A completion taken apart while it is being written: reasoning, content, and tool calls whose arguments stream.

Nothing that a model writes raises. What DeepSeek's own parser takes for a call is one here too, with the exceptions
that docs/chat.md lists; everything else stays text, as it was written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from flagrelease.model.spelling import Spelling
from flagrelease.model.turns import END_THINK, EOS
from flagrelease.model.v4.dsml import Calls, Piece, ToolCall
from flagrelease.model.v4.encoded import Opening, Part
from flagrelease.model.v4.markup import Awaited, begins
from flagrelease.model.v4.quoting import Quoting
from flagrelease.model.v4.trial import Trial

_PIECE = 2048  # characters that are read at once


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
class CompletionStream:
    """Text in, pieces out as soon as it is sure what they are."""

    _part: Part
    _tools: bool  # calls are read as such
    _spelling: Spelling
    as_taught: bool = True
    _unread: deque[str] = field(default_factory=deque)
    _read: int = 0  # characters, of which the last ones are held
    _held: str = ""
    _awaited: Awaited | None = None  # what comes behind the held text, until it is looked at
    _calls: Calls | None = None  # a block that has begun
    _trial: Trial | None = None  # a block inside the thought
    _tried: list[str] = field(default_factory=list)  # its text
    _only_calls: bool = False  # the trial went well: nothing but calls is left in the thought
    _plain: int = 0  # up to here markup of calls is text
    _number: int = 0  # of calls that have begun
    _after_block: bool = False
    _quoting: Quoting = field(default_factory=Quoting)

    @classmethod
    def start(cls, opening: Opening) -> CompletionStream:
        """At the end of a prompt. Where it offered no tools, markup of calls is text, as with DeepSeek's parser."""
        return cls(opening.part, opening.tools, opening.spelling)

    @property
    def part(self) -> Part:
        """What is being said, as far as the text has come."""
        return self._part

    def push(self, text: str) -> list[Said | Piece]:
        """What can be said now."""
        self._put_back(text)
        return self._advance(final=False)

    def end(self, *, cut: bool = False) -> list[Said | Piece]:
        """What was held back.

        Args:
            cut: the answer met a length limit. Then the arguments of a call that is not complete stay a beginning of
                JSON, so that nobody carries out half of it; else the model ended there, and they are closed.
        """
        if self._awaited is not None:
            self._take(self._awaited.push("", final=True) or "")
            self._awaited = None
        if self._held.endswith(EOS):
            self._held, self._read = self._held[: -len(EOS)], self._read - len(EOS)
        pieces = self._advance(final=True)
        if self._calls is not None:
            pieces += self._calls.end(cut=cut)
            self._note(self._calls)
        return pieces

    def _put_back(self, text: str) -> None:
        """Let `text` be read next, in pieces: what is cut off at the front of a long text is all of it copied."""
        self._unread.extendleft(text[n : n + _PIECE] for n in reversed(range(0, len(text), _PIECE)))

    def _advance(self, *, final: bool) -> list[Said | Piece]:
        pieces: list[Said | Piece] = []
        while self._unread or final:
            text = self._unread.popleft() if self._unread else ""
            last = final and not self._unread
            self._step(pieces, text, final=last)
            if last and not self._unread:
                break
        return pieces

    def _step(self, pieces: list[Said | Piece], text: str, *, final: bool) -> None:
        """Read `text`; what the state that it ends leaves of it is read next."""
        if self._calls is not None:
            new, rest = self._calls.push(text, final=final)
            pieces += new
            self._read += len(text)
            if rest is not None:
                self._note(self._calls)
                self._calls, self._after_block = None, True
                self._read -= len(rest)
                self._put_back(rest)
        elif self._trial is not None:
            self._try(pieces, text, self._trial, final=final)
        else:
            come = text if self._awaited is None else self._awaited.push(text, final=final)
            if come is not None:
                self._take(come)
                self._awaited = None
                self._advance_text(pieces, final=final)

    def _take(self, text: str) -> None:
        self._read += len(text)
        self._held += text

    def _give_back(self, found: int) -> str:
        """The held text from `found` on, which is not held any more."""
        text, self._held = self._held[found:], self._held[:found]
        self._read -= len(text)
        return text

    def _note(self, calls: Calls) -> None:
        self._number, self.as_taught = calls.number, self.as_taught and calls.as_taught

    def _try(self, pieces: list[Said | Piece], text: str, trial: Trial, *, final: bool) -> None:
        """Read on in a block of the thought, which may be text after all."""
        self._tried.append(text)
        ended = trial.push(text, final=final)
        self._trial = trial if ended is None else None
        if ended is None:
            return
        whole, self._tried = "".join(self._tried), []
        whole = whole.removesuffix(EOS) if final else whole
        if ended:
            self._only_calls = True
            self._open_block(pieces, whole)
        else:
            self._plain = self._read + max(trial.failed_at, 1)
            self._put_back(whole)

    def _advance_text(self, pieces: list[Said | Piece], *, final: bool) -> None:
        """Say the held text up to the next block or the end of the thought."""
        thinks = self._part == "reasoning_content"
        place = max(self._plain - (self._read - len(self._held)), 0)
        while (found := self._next_mark(place, thinks)) >= 0:
            if self._held.startswith(END_THINK, found):
                self._put_back(self._give_back(found)[len(END_THINK) :])
                if not self._after_block or self._held.strip():
                    self._say(pieces, self._held)
                self._held, self._part, self._quoting = "", "content", Quoting()
                self._read += len(END_THINK)
                return
            starts_line = self._quoting.starts_line(self._held[:found])
            begun = begins(self._held, found, self._spelling, final=final, starts_line=starts_line)
            if begun in ("unsure", "object"):
                self._awaited = (
                    Awaited(len(self._held) - found, self._spelling.end_invoke) if begun == "object" else None
                )
                break
            if begun == "no" or self._quoting.after(self._held[:found]):
                place = found + 1
                if found > _PIECE:
                    self._plain = self._read - len(self._held) + place
                    self._put_back(self._give_back(found))
                    self._say(pieces, self._held)
                    self._held = ""
                    return
                continue
            block = self._give_back(found)
            if not thinks or self._only_calls:
                self._open_block(pieces, block)
                return
            self._try(pieces, block, Trial(starts_line, self._spelling), final=final)
            if self._trial is not None:
                self._say_held(pieces, found, final=False)
            return
        self._say_held(pieces, found, final=final)

    def _say_held(self, pieces: list[Said | Piece], found: int, *, final: bool) -> None:
        """Say what belongs to no mark, one of which may have begun at `found`, or -1."""
        keep = len(self._held) if final else self._sayable(found)
        if self._after_block and (self._spelling.end_block if final else "").startswith(self._held[:keep].strip()):
            if final and self._held:  # only space after the calls, or a tag that the answer's end cut
                self._held, self.as_taught = "", False
            return
        self._say(pieces, self._held[:keep])
        self._held = self._held[keep:]

    def _open_block(self, pieces: list[Said | Piece], block: str) -> None:
        """Begin to read `block`, behind the held text."""
        text = self._held
        for _ in range(2):  # the prompt teaches a blank line before the block
            text = text.removesuffix("\n")
        if self._held[len(text) :] != "\n\n" or not block.startswith(self._spelling.block) or self._part != "content":
            self.as_taught = False
        if self._after_block:
            self.as_taught = False
            text = text if text.strip() else ""
        self._say(pieces, text)
        self._held, self._calls = "", Calls(self._number, self._spelling)
        self._put_back(block)

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
