"""`Mark`: what is kept of an answer.

A mark's value is a letter or a number as it was read. For kinds whose answers are texts it is the item's own `answer`
where the text is right, and a digest where it is not: no journal or report holds what was written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from flagrelease.validate.exams.items import Item


@dataclass(frozen=True, slots=True)
class Mark:
    """What is kept of an answer.

    Attributes:
        value: None where there is no answer in the asked form.
        undecided: there is an answer, and nobody could tell whether it is right; it counts as wrong, and as such.
    """

    value: str | None
    undecided: bool = False


class Marker(Protocol):
    """Marks answers of one kind."""

    def mark(self, item: Item, text: str) -> Mark:
        """Mark what follows the reasoning."""
        ...


def other_than(text: str) -> str:
    """What is kept of a text that is not the right answer: enough to see that two are the same."""
    return f"other {hashlib.sha256(text.encode()).hexdigest()[:12]}"
