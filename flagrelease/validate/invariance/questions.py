"""Questions to registers by rule: what the answer says stands in the prompt, and nowhere else.

A model has to find an entry again wherever the chunks of its prompt end. The registers are those of the long-context
stage, a few thousand tokens long, and questions lead through one entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flagrelease.validate.logits.sequence import Numbers
from flagrelease.validate.long_context.registers import FORMS, Register

_SAMPLE = 8  # entries whose tokens tell how many a length takes


@dataclass(frozen=True, slots=True)
class RegisterQuestion:
    """A user's turn, and the number that is the right answer."""

    text: str
    answer: int


def register_questions(
    form: Literal["register", "ledger"], tokens: int, count: int, seed: int, length: Callable[[str], int]
) -> list[RegisterQuestion]:
    """Questions to one register, whose prompts share all but their last lines.

    The entries that are asked for lie in its first half, spread evenly.

    Args:
        form: of the register.
        tokens: that it has at least, as `length` counts them.
        count: of questions.
        seed: of the register, from 0.
        length: tokens of a text.

    Raises:
        ValueError: no register of this form is so long.
    """
    register = _drawn(form, tokens, 2 * count, seed, length)
    places = [len(register.names) * (2 * n + 1) // (4 * count) for n in range(count)]
    return [
        RegisterQuestion(register.text + FORMS[form].ask(register.names[place], 1), register.values[place])
        for place in places
    ]


def says(answer: str, number: int) -> bool:
    """Whether `number` is the last one in an answer: what comes before may be entries that it recites."""
    found = re.findall(r"\d+", answer)
    return bool(found) and int(found[-1]) == number


def _drawn(form: str, tokens: int, least: int, seed: int, length: Callable[[str], int]) -> Register:
    """A register of at least so many tokens and entries."""

    def draw(entries: int) -> Register:
        return FORMS[form].draw(Numbers(seed + 1), entries)

    few, more = length(draw(_SAMPLE).text), length(draw(2 * _SAMPLE).text)
    entries = max(2, least, _SAMPLE + math.ceil((tokens - few) * _SAMPLE / (more - few)))
    while length((register := draw(entries)).text) < tokens:
        entries += 1
    return register
