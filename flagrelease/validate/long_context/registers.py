"""Registers by rule: entries that name each other, and questions whose answer stands in one of them.

An entry has a name, a link (the name of another entry of the same register) and a value. The links form one ring, so
that every entry can be the last of a chain, and no place in the text tells where a link leads. Everything is drawn from
a seed: no text of a register is or ever was public, and no answer can be known without the register.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flagrelease.validate.logits.sequence import Numbers

_BARGES = ("Heron", "Otter", "Plover", "Marten", "Curlew", "Lapwing", "Badger", "Wren")
_GOODS = ("salt", "barley", "slate", "lamp oil", "glass", "rope", "honey", "timber")
_PLACES = ("Alder Lock", "Maple Quay", "Stone Bridge", "Willow Basin", "Northgate", "Mill Weir", "Chalk Wharf")
_KEEPERS = ("Ines", "Tomas", "Greta", "Aldo", "Miriam", "Pavel", "Noor", "Stellan")
_LEDGER_TEXT = (
    "amber apple arrow basin beech birch bison blaze brook cabin cedar chalk cliff cloud clove coral crane creek daisy "
    "delta ember fable ferry fjord flint frost glade grape grove hazel heron holly honey ivory jewel kayak lemon lilac "
    "lotus maple marsh melon mango north ocean olive onion opal otter panda pearl pecan plaza quail raven river robin "
    "sable stone swift thorn tiger tulip zebra"
)
_LEDGER_NAMES = _LEDGER_TEXT.split()


@dataclass(frozen=True, slots=True)
class Register:
    """A text of entries. `links[i]` is the place of the entry that entry i names; `values[i]` what it holds.

    `text` is what a prompt begins with; `room` whether notes may stand behind it, to fill a prompt up to its length.
    """

    names: tuple[str, ...]
    links: tuple[int, ...]
    values: tuple[int, ...]
    text: str
    room: bool

    def asked_for(self, place: int, hops: int) -> int:
        """The entry that a question names so that `hops` entries, this one counted, end at the one at `place`."""
        before = {link: entry for entry, link in enumerate(self.links)}
        for _ in range(hops - 1):
            place = before[place]
        return place


class Form(Protocol):
    """A kind of register."""

    def draw(self, numbers: Numbers, entries: int) -> Register:
        """A register of so many entries.

        Raises:
            ValueError: it cannot have so many, or so few.
        """
        ...

    def ask(self, name: str, hops: int) -> str:
        """The question for the value at the end of a chain of `hops` entries that begins at `name`."""
        ...


class RiverForm:
    """Departures of barges, a sentence each, by numbers of seven digits in no order."""

    def draw(self, numbers: Numbers, entries: int) -> Register:
        """As `Form` says."""
        names = _different(numbers, entries, 1_000_000, 9_999_999)
        links = _ring(numbers, entries)
        values, lines = [], ["Register of the river authority. Every entry is one departure.", ""]
        for name, link in zip(names, links, strict=True):
            barge, goods, keeper = (numbers.one_of(choices) for choices in (_BARGES, _GOODS, _KEEPERS))
            start, end, load = numbers.one_of(_PLACES), numbers.one_of(_PLACES), numbers.between(101, 999)
            values.append(load)
            lines.append(
                f"Departure {name}: the barge {barge} left {start} for {end} with {load} crates of {goods}, keeper "
                f"{keeper}; its return load is departure {names[link]}."
            )
        return Register(tuple(names), tuple(links), tuple(values), "\n".join(lines) + "\n", room=True)

    def ask(self, name: str, hops: int) -> str:
        """As `Form` says."""
        chain = "the return load of " * (hops - 1)
        return (
            f"\nHow many crates did {chain}departure {name} carry? Quote the entries of the register that you need, "
            "then put the number within \\boxed{}."
        )


class LedgerForm:
    """Rows "name link code" behind the word Ledger, as the small model of examples/tiny was taught to read them."""

    def draw(self, numbers: Numbers, entries: int) -> Register:
        """As `Form` says."""
        if entries > len(_LEDGER_NAMES):
            raise ValueError(f"a ledger has at most {len(_LEDGER_NAMES)} rows")
        names = _shuffled(numbers, _LEDGER_NAMES)[:entries]
        links = _ring(numbers, entries)
        codes = [int(code) for code in _different(numbers, entries, 10, 99)]
        rows = "".join(f" {name} {names[link]} {code}" for name, link, code in zip(names, links, codes, strict=True))
        return Register(tuple(names), tuple(links), tuple(codes), f"Ledger:{rows}", room=False)

    def ask(self, name: str, hops: int) -> str:
        """As `Form` says."""
        return f"\nWhat is the code of {'the link of ' * (hops - 1)}{name}?\nAnswer:"


FORMS: dict[str, Form] = {"register": RiverForm(), "ledger": LedgerForm()}


def _shuffled(numbers: Numbers, values: Sequence[str]) -> list[str]:
    """Fisher and Yates."""
    shuffled = list(values)
    for last in range(len(shuffled) - 1, 0, -1):
        other = numbers.below(last + 1)
        shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
    return shuffled


def _ring(numbers: Numbers, entries: int) -> list[int]:
    """For every entry another one, so that they all are one ring."""
    if entries < 2:
        raise ValueError("a ring has at least two entries")
    order = [int(place) for place in _shuffled(numbers, [str(place) for place in range(entries)])]
    links = [0] * entries
    for place, following in zip(order, [*order[1:], order[0]], strict=True):
        links[place] = following
    return links


def _different(numbers: Numbers, count: int, low: int, high: int) -> list[str]:
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[str(numbers.between(low, high))] = None
    return list(drawn)
