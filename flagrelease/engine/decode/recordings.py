"""Work that is captured once for each size and replayed, where the operators and the device allow it.

A recording of several ranks holds their collectives, so all ranks must record and replay the same sizes in the same
order. They do: a size follows from what is given and from the rows' lengths, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.rope import RopeTable


class Recordings:
    """By size. Work may run more than once for its recording: it overwrites nothing that it reads."""

    def __init__(self, model: Model) -> None:
        """Nothing is captured yet."""
        self._model = model
        self._captured: dict[Hashable, Callable[[], None]] = {}
        self._tables: list[RopeTable] = []  # read by recordings: the model drops its own for longer ones

    def run(self, size: Hashable, work: Callable[[], None]) -> None:
        """Queue `work`, whose kernels and addresses follow from `size` alone.

        `work` is not kept: graphs are to end with those who hold the recordings, not when garbage is collected.
        """
        if not self._model.ops.captured:
            work()
            return
        if size not in self._captured:
            self._captured[size] = self._model.device.capture(work)
            self._tables += self._model.ropes
        self._captured[size]()

    def forget(self) -> None:
        """Let go of what was captured; later work is captured anew."""
        self._captured.clear()
        self._tables.clear()
