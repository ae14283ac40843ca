"""What every interface's answer keeps of a sequence: counts of tokens, and what a chat's answer says."""

from __future__ import annotations

from flagrelease.engine.batch.acceptance import NO_DRAFTS
from flagrelease.engine.batch.sequence import Event, Finish
from flagrelease.model.v4.completion import CompletionStream, Said
from flagrelease.model.v4.dsml import Piece
from flagrelease.model.v4.encoded import Opening


class Counted:
    """Tokens of a sequence, and what became of its drafts.

    `cached` ones of the prompt were read for another sequence before.
    """

    def __init__(self, prompt: list[int]) -> None:
        """Nothing has come yet."""
        self.prompt, self.generated, self.acceptance, self.cached = prompt, 0, NO_DRAFTS, 0

    def count(self, event: Event) -> None:
        """Take the numbers of an event, each of which stands for the whole sequence so far."""
        self.generated, self.acceptance, self.cached = event.generated, event.acceptance, event.cached


class Spoken(Counted):
    """A chat's answer, taken apart while it comes: reasoning, content and calls.

    Attributes:
        finish: why it ended; None before it did.
        stopped_by: the stop string that ended it, if one did.
        reasoned: tokens up to the end of the reasoning, which is told to the step.
    """

    def __init__(self, prompt: list[int], opening: Opening) -> None:
        """The answer to a prompt that ended in `opening`."""
        super().__init__(prompt)
        self.finish: Finish | None = None
        self.stopped_by: str | None = None
        self.reasoned = 0
        self._stream = CompletionStream.start(opening)

    @property
    def as_taught(self) -> bool:
        """Whether thought and calls have the very form that the prompt teaches."""
        return self._stream.as_taught

    def pieces(self, event: Event) -> list[Said | Piece]:
        """What an event adds."""
        self.count(event)
        if self._stream.part == "reasoning_content":
            self.reasoned = event.generated
        pieces = self._stream.push(event.text)
        if event.finish:
            self.finish, self.stopped_by = event.finish, event.stopped_by
            pieces += self._stream.end(cut=event.finish == "length")
        return pieces
