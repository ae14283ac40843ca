"""`--speculate auto`: drafting stops where it does not pay and is tried again; no token depends on it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from flagrelease.engine.batch.acceptance import NO_DRAFTS, Acceptance
from flagrelease.engine.batch.worth import TERM, TRIAL, Worth


class Machine:
    """Steps that take so many seconds, and whose verifications bring so many tokens; its own clock."""

    def __init__(self, plain: float, drafted: float, tokens: int) -> None:
        self.seconds, self.tokens = {False: plain, True: drafted}, tokens
        self.now, self.counted = 0.0, NO_DRAFTS
        self.worth = Worth(lambda: self.now)
        self._drafting = False

    def run(self, steps: int, rows: int = 1, *, calm: bool = True) -> list[bool]:
        """Whether each of these steps had drafts. Between the kinds is a step that is neither."""
        return list(self._run(steps, rows, calm=calm))

    def _run(self, steps: int, rows: int, *, calm: bool) -> Iterable[bool]:
        for _ in range(steps):
            wanted = self.worth.wants(rows)
            changed, self._drafting = wanted != self._drafting, wanted
            self.now += 1000.0 if changed else self.seconds[wanted]  # a first step of a kind is captured
            if wanted and not changed:
                for _ in range(rows):
                    self.counted += Acceptance.of_step(5, self.tokens - 1)
            self.worth.note(rows, self.counted, drafting=wanted, calm=calm and not changed)
            yield wanted


def trial(steps: list[bool]) -> list[bool]:
    """What is left of a run behind the steps that are timed first: plain ones, then those with drafts."""
    assert steps[: TRIAL + 1] == [False] * (TRIAL + 1)
    assert steps[TRIAL + 1 : 2 * TRIAL + 3] == [True] * (TRIAL + 2)
    return steps[2 * TRIAL + 3 :]


@pytest.mark.parametrize(("tokens", "pays"), [(1, False), (2, False), (3, True), (6, True)])
def test_drafts_go_on_where_they_bring_more_than_they_take(tokens: int, pays: bool) -> None:
    machine = Machine(plain=1.0, drafted=2.5, tokens=tokens)
    assert set(trial(machine.run(2 * TRIAL + 100))) == {pays}
    assert machine.worth.break_even(1) == 2.5


def test_the_same_acceptance_pays_at_one_batch_size_only() -> None:
    machine = Machine(plain=1.0, drafted=1.6, tokens=2)
    assert machine.run(100)[-1]
    machine.seconds[True] = 2.2  # what 16 rows take
    assert not machine.run(100, rows=16)[-1]
    assert not machine.run(1, rows=9)[0]  # the same power of two
    machine.seconds[True] = 1.6
    assert machine.run(1)[0]


def test_drafts_pause_when_the_text_becomes_hard_to_guess_and_are_tried_again() -> None:
    machine = Machine(plain=1.0, drafted=2.0, tokens=4)
    assert machine.run(200)[-1]
    machine.tokens = 1
    falling = machine.run(200)
    stopped = falling.index(False)
    assert 20 < stopped < 64  # a few bad steps among good ones are no reason
    assert not any(falling[stopped:])
    machine.tokens = 4
    paused = machine.run(2 * TERM)
    again = paused.index(True)
    assert TERM - 200 < again <= TERM
    assert paused[-1]


def test_what_is_tried_again_costs_little_where_it_does_not_pay() -> None:
    machine = Machine(plain=1.0, drafted=2.0, tokens=1)
    steps = trial(machine.run(2 * TRIAL + 3 + 4 * TERM))
    assert 0 < sum(steps) <= 4 * (TRIAL + 2)


def test_a_slower_plain_step_is_noticed() -> None:
    """The time of a plain step is not that of the beginning for ever: contexts grow."""
    machine = Machine(plain=1.0, drafted=2.0, tokens=3)
    assert machine.run(100)[-1]
    machine.seconds[False] = 0.5
    steps = machine.run(TERM + 100)
    assert steps.count(False) > TRIAL
    assert not steps[-1]


def test_nothing_is_drafted_while_nothing_is_known() -> None:
    """Where every step reads prompts too, times say nothing of drafts."""
    assert not any(Machine(plain=1.0, drafted=1.0, tokens=6).run(300, calm=False))


def test_one_slow_step_decides_nothing() -> None:
    machine = Machine(plain=1.0, drafted=2.0, tokens=3)
    machine.run(TRIAL + 2)
    machine.now += 500.0
    assert set(machine.run(2 * TRIAL)[TRIAL + 5 :]) == {True}


def test_counts_by_place() -> None:
    both = Acceptance.of_step(5, 2) + Acceptance.of_step(3, 3) + Acceptance.of_step(0, 0)
    assert both == Acceptance(3, (2, 2, 2, 1, 1), (2, 2, 1, 0, 0))
    assert (both.drafts, both.right, both.tokens_per_verification) == (8, 5, 1 + 5 / 3)
    assert sum(both.shares) == pytest.approx(both.tokens_per_verification - 1)
    since = both - Acceptance.of_step(5, 2)
    assert (since.verifications, since.drafts, since.right) == (2, 3, 3)
    assert NO_DRAFTS.tokens_per_verification is None
    assert NO_DRAFTS.shares == ()
