"""Parts of a step that do not need each other, on several streams of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators

T = TypeVar("T")
LANES = 2  # the second one is for short works


class Branches:
    """`Device.beside` for operators, which are told where the streams part and where they meet."""

    def __init__(self, ops: Operators, device: Device) -> None:
        """To be used from one stream, and by one thread."""
        self._ops, self._device = ops, device
        self._parted, self._met = [0] * LANES, [0] * LANES  # works begun in a lane; the last that was waited for
        self._joins: list[Callable[[], object]] = [lambda: None] * LANES  # what waits for the last that was begun

    def beside(self, work: Callable[..., T], *arguments: Any, lane: int = 0) -> Callable[[], T]:
        """Queue `work(*arguments)` beside what is queued next: `Device.beside`, where operators do not wait.

        Works of a lane come one after the other, so that who has waited for a later one waits for nothing. A wait costs
        the next kernel its early start, so that works of other lanes are waited for along with it.
        """
        if not self._ops.captured:
            result = work(*arguments)
            return lambda: result
        self._parted[lane] += 1
        number, results = self._parted[lane], list[T]()
        join = self._joins[lane] = self._device.beside(lane, self._begin, results, work, *arguments)

        def joined() -> T:
            if self._met[lane] < number:
                self._meet(lane, number, join)
                for other in range(LANES):
                    if other != lane and self._met[other] < self._parted[other]:
                        self._meet(other, self._parted[other], self._joins[other])
                self._ops.start_after_all()
            return results[0]

        return joined

    def _meet(self, lane: int, number: int, join: Callable[[], object]) -> None:
        join()
        self._met[lane] = number

    def _begin(self, results: list[T], work: Callable[..., T], *arguments: Any) -> None:
        self._ops.start_after_all()
        results.append(work(*arguments))
