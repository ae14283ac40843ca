"""A block inside a thought: calls if the message ends with it, else something that the model thought about.

The end of the thought may stand behind it, if nothing else does: then the model has answered nothing but the block.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.model.spelling import Spelling
from flagrelease.model.turns import END_THINK
from flagrelease.model.v4.dsml import Calls
from flagrelease.model.v4.markup import Awaited, begins


@dataclass(slots=True)
class Trial:
    """The text of a thought from where a block begins in it."""

    _starts_line: bool
    _spelling: Spelling
    _calls: Calls | None = None
    _rest: str = ""  # of the text in front of the end of the thought
    _awaited: Awaited | None = None  # what comes behind that, until it is looked at
    _held: str = ""  # what was not read yet
    _ended: bool = False  # the end of the thought came
    _length: int = 0  # of the text in front of it
    failed_at: int = 0  # no block that begins in front of this place is calls either

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
            self._length += len(before)
            possible = self._possible(before, final=final or self._ended)
            self.failed_at = self._length - (0 if possible else len(self._rest))
            if not possible or (self._ended and self._calls is not None):
                return False
        if self._ended and self._held.strip():
            return False
        return True if final else None

    def _possible(self, text: str, *, final: bool) -> bool:
        """Read on; tells whether everything so far is blocks. `final` if nothing follows that may belong to one."""
        if self._awaited is not None:
            come = self._awaited.push(text, final=final)
            if come is None:
                return True
            self._awaited, text = None, come
        self._rest += text
        while self._calls is not None or self._rest.strip():
            if self._calls is None:
                self._rest = self._rest.lstrip()
                begun = begins(self._rest, 0, self._spelling, final=final, starts_line=self._starts_line)
                if begun != "yes":
                    self._awaited = Awaited(len(self._rest), self._spelling.end_invoke) if begun == "object" else None
                    return begun in ("unsure", "object")
                self._calls, self._starts_line = Calls(0, self._spelling), True
            _, rest = self._calls.push(self._rest, final=final)
            self._rest = rest or ""
            if rest is None:
                break
            self._calls = None
        return True
