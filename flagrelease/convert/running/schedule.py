"""`Schedule`: hands out the jobs of a plan in its order, and knows which running job is the first.

Workers run ahead of one another: a file's thread puts the bytes of later jobs aside until those before them are there.
The plan's order is one that satisfies every file, so nothing ever waits for the first running job to be preceded by
another, and it alone may take the last buffers (`lanes.Buffers`). That is why work never stands still.
"""

from __future__ import annotations

from collections import deque

from flagrelease.convert.planning.jobs import Job
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.journal import Journal, TensorResult
from flagrelease.convert.running.lanes import Lane, Run, Stopped


class Schedule:
    """The jobs of a plan that are still to be done, handed out to workers by their numbers."""

    def __init__(self, run: Run, plan: Plan, lanes: dict[int, Lane], journals: dict[int, Journal]) -> None:
        """Leave out every job whose bytes are all in files of an earlier run and whose digests are recorded."""
        self._run = run
        self._plan = plan
        self._journals = journals
        self._running: set[int] = set()
        self._left = deque(
            number for number, job in enumerate(plan.jobs) if _unwritten(job, lanes) or self._unrecorded(job)
        )

    def take(self) -> int | None:
        """The number of the next job; None when none is left.

        Raises:
            Stopped: the run was stopped.
        """
        with self._run.changed:
            if self._run.stopped:
                raise Stopped
            if not self._left:
                return None
            number = self._left.popleft()
            self._running.add(number)
            return number

    def is_first(self, number: int) -> bool:
        """Whether no running job stands before this one. To be asked with the run's lock held."""
        return number == min(self._running)

    def done(self, number: int) -> None:
        """All bytes of a job are on their way: another one is now the first."""
        with self._run.changed:
            self._running.remove(number)
            self._run.changed.notify_all()

    def record(self, job: Job, result: TensorResult) -> None:
        """Enter a result in the journal of every release that it belongs to."""
        for product in job.products:
            if product.action is result.action:
                for release in product.releases & self._journals.keys():
                    self._journals[release].add_tensor(result)

    def _unrecorded(self, job: Job) -> bool:
        return any(
            (job.tensor.spec.name, product.action) not in self._journals[release].tensors
            for product in job.products
            for release in product.releases & self._journals.keys()
        )


def _unwritten(job: Job, lanes: dict[int, Lane]) -> bool:
    return any(
        piece.file in lanes and piece.end > lanes[piece.file].resume_at
        for product in job.products
        for pieces in product.pieces.values()
        for piece in pieces
    )
