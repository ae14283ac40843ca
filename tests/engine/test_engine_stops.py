"""Stop strings against their definition, whatever the pieces of the text, and in time that grows with the text."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagrelease.engine import stops as stops_module
from flagrelease.engine.stops import StopWatch


def by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text that is said, and what stopped it: complete first, and the longest of those."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def could_stop(text: str, stops: list[str]) -> int:
    """How many characters at the end of `text` a stop string may begin with."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def cuts(text: str, chance: random.Random) -> Iterator[str]:
    place = 0
    while place < len(text):
        size = chance.choice([1, 1, 2, 3, 10])
        yield text[place : place + size]
        place += size


@settings(deadline=None)
@given(
    st.text("abc", max_size=60),
    st.lists(st.text("abc", min_size=1, max_size=6), max_size=5),
    st.randoms(use_true_random=False),
)
def test_what_is_said_follows_from_the_text_alone(text: str, stops: list[str], chance: random.Random) -> None:
    watch, said, read = StopWatch(stops), "", ""
    for piece in cuts(text, chance):
        said, read = said + watch.push(piece), read + piece
        if not watch.stopped:
            assert len(read) - len(said) == could_stop(read, stops)  # nothing is held back for no reason
    assert (said + watch.rest(), watch.stopped_by) == by_definition(text, stops)


def test_a_stop_string_inside_a_longer_one_does_not_wait_for_it() -> None:
    # in pieces of a character the text ended before "c", in one piece before "abcd"
    whole, single = StopWatch(["abcd", "c"]), StopWatch(["abcd", "c"])
    assert whole.push("xabcd") == "xab"
    assert "".join(map(single.push, "xabcd")) == "xab"
    assert whole.stopped_by == single.stopped_by == "c"


@pytest.mark.parametrize("kind", ["repeated", "nearly", "nested"])
def test_each_character_is_looked_at_a_few_times(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 stop strings of 256 characters were searched for, and compared at every length, with every token."""
    steps = 0

    class Counted(dict[str, int]):
        def get(self, key: str, default: int | None = None) -> int | None:  # type: ignore[override]
            nonlocal steps
            steps += 1
            return super().get(key, default)

    stops = {
        "repeated": ["a" * 255 + end for end in "bcdefghijklmnopq"],
        "nearly": ["ab" * n + "c" * (256 - 2 * n) for n in range(100, 116)],
        "nested": ["a" * n + "b" for n in range(100, 116)],
    }[kind]
    text = {"repeated": "a" * 50_000, "nearly": "ab" * 25_000, "nested": ("a" * 99 + "b") * 500}[kind]
    monkeypatch.setattr(stops_module, "_automaton", stops_module._Automaton)
    watch = StopWatch(stops)
    watch._automaton._next = [Counted(node) for node in watch._automaton._next]  # type: ignore[misc]
    said = [watch.push(text[n : n + 4]) for n in range(0, len(text), 4)]
    assert "".join(said) + watch.rest() == text
    assert steps <= 2 * len(text)
