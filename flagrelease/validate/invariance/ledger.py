"""Ledgers by rule, and questions to them: what an answer says stands somewhere in the prompt, and nowhere else.

A ledger is rows of a name, the name that it links to and a code, in the form that examples/tiny was trained on. The
question asks for the code of one row, so a model has to find that row again wherever the chunks of its prompt end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from flagrelease.validate.logits.sequence import Numbers

_NAME_TEXT = (
    "amber apple arrow basin beech birch bison blaze brook cabin cedar chalk cliff cloud clove coral crane creek daisy "
    "delta ember fable ferry fjord flint frost glade grape grove hazel heron holly honey ivory jewel kayak lemon lilac "
    "lotus maple marsh melon mango north ocean olive onion opal otter panda pearl pecan plaza quail raven river robin "
    "sable stone swift thorn tiger tulip zebra"
)
_NAMES = _NAME_TEXT.split()
_CODES = range(10, 100)


@dataclass(frozen=True, slots=True)
class LedgerQuestion:
    """A user's turn, and the number that is the right answer."""

    text: str
    answer: int


def ledger_questions(tokens: int, count: int, seed: int, length: Callable[[str], int]) -> list[LedgerQuestion]:
    """Questions to one ledger, whose prompts share all but their last lines.

    The rows that are asked for lie in its first half, spread evenly.

    Args:
        tokens: that a user's turn has at least, as `length` counts them.
        count: of questions.
        seed: of the ledger.
        length: tokens of a text.
    """
    rows = _rows(tokens, seed, length)
    head = "Ledger:" + "".join(f" {name} {link} {code}" for name, link, code in rows)
    asked = [rows[len(rows) * (2 * n + 1) // (4 * count)] for n in range(count)]
    return [LedgerQuestion(f"{head}\nWhat is the code of {name}?\nAnswer:", code) for name, _, code in asked]


def says(answer: str, number: int) -> bool:
    """Whether `number` is the last one in an answer: what comes before may be rows that it recites."""
    found = re.findall(r"\d+", answer)
    return bool(found) and int(found[-1]) == number


def _rows(tokens: int, seed: int, length: Callable[[str], int]) -> list[tuple[str, str, int]]:
    """As few as are long enough. Names are different; beyond those of one word they have two."""
    numbers = Numbers(seed + 1)
    names = _shuffled(numbers, _NAMES)
    if length(" ".join(names)) * 3 < tokens:
        names = _shuffled(numbers, [f"{first}-{second}" for first in _NAMES for second in _NAMES if first != second])
    codes = [numbers.one_of(_CODES) for _ in names]
    rows = list(zip(names, names[1:] + names[:1], codes, strict=True))
    fewest, most = 1, len(rows)
    while fewest < most:  # the length grows with every row
        middle = (fewest + most) // 2
        if length("".join(f" {name} {link} {code}" for name, link, code in rows[:middle])) >= tokens:
            most = middle
        else:
            fewest = middle + 1
    return rows[:fewest]


def _shuffled(numbers: Numbers, names: list[str]) -> list[str]:
    """Fisher and Yates."""
    shuffled = list(names)
    for last in range(len(shuffled) - 1, 0, -1):
        other = numbers.below(last + 1)
        shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
    return shuffled
