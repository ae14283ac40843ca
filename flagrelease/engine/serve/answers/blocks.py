"""A chat's answer as blocks that begin, grow and end, as OpenAI's Responses and Anthropic's Messages show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.serve.answers.spoken import Spoken
from flagrelease.model.v4.completion import Said
from flagrelease.model.v4.dsml import Piece
from flagrelease.model.v4.encoded import Opening

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class AnswerBlock:
    """One block, in the order in which they came. `name` is that of the function of a call; its text is arguments."""

    place: int
    kind: Kind
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    whole: bool = False  # it ended, and was not cut off

    @property
    def text(self) -> str:
        """So far."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a block; `text` is what it grew by."""

    what: Literal["begun", "grown", "ended"]
    block: AnswerBlock
    text: str = ""


class AnswerBlocks(Spoken):
    """The answer's blocks."""

    def __init__(self, prompt: list[int], opening: Opening) -> None:
        """The answer to a prompt that ended in `opening`."""
        super().__init__(prompt, opening)
        self.blocks: list[AnswerBlock] = []

    def changes(self, event: Event) -> Iterator[Change]:
        """What an event changes. Where it ends the answer, the last block ends too."""
        for piece in self.pieces(event):
            yield from self._take(piece)
        if event.finish:
            yield from self._end(cut=event.finish == "length")

    def _take(self, piece: Said | Piece) -> Iterator[Change]:
        if isinstance(piece, Said):
            kind: Kind = "text" if piece.part == "content" else "reasoning"
            begins, name, text = not self.blocks or self.blocks[-1].kind != kind, "", piece.text
        else:
            kind, begins, name, text = "call", piece.name is not None, piece.name or "", piece.arguments
        if begins:
            yield from self._end(cut=False)
            self.blocks.append(AnswerBlock(len(self.blocks), kind, name))
            yield Change("begun", self.blocks[-1])
        if text:
            self.blocks[-1].pieces.append(text)
            yield Change("grown", self.blocks[-1], text)

    def _end(self, *, cut: bool) -> Iterator[Change]:
        if self.blocks:
            self.blocks[-1].whole = not cut
            yield Change("ended", self.blocks[-1])
