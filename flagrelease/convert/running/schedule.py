"""`Schedule`: which job may run next, so that every file receives its bytes front to back.

A job is ready when it is the next one of all files it writes to. The plan's order is one that satisfies every file, so
the first unfinished job is always ready and work never stands still; ready jobs are taken in that order.
"""

from __future__ import annotations

import heapq
from collections import deque

from flagrelease.convert.planning.jobs import Job
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.journal import Journal, TensorResult
from flagrelease.convert.running.lanes import Lane, Run, Stopped


class Schedule:
    """The jobs of a plan that are still to be done, handed out to workers."""

    def __init__(self, run: Run, plan: Plan, lanes: dict[int, Lane], journals: dict[int, Journal]) -> None:
        """Leave out every job whose bytes are all in files of an earlier run and whose digests are recorded."""
        self._run = run
        self._plan = plan
        self._journals = journals
        self._files: dict[int, frozenset[int]] = {}  # job -> lanes it must write to
        self._ready: list[int] = []
        self._heads: dict[int, int] = {}  # job -> lanes that wait for it next
        self._queues: dict[int, deque[int]] = {number: deque() for number in lanes}
        self._numbers = {id(job): number for number, job in enumerate(plan.jobs)}
        for number, job in enumerate(plan.jobs):
            files = frozenset(
                piece.file
                for product in job.products
                for pieces in product.pieces.values()
                for piece in pieces
                if piece.file in lanes and piece.end > lanes[piece.file].resume_at
            )
            if files or self._unrecorded(job):
                self._files[number] = files
                self._heads[number] = 0
                for file in files:
                    self._queues[file].append(number)
                if not files:
                    self._ready.append(number)
        heapq.heapify(self._ready)
        for queue in self._queues.values():
            self._next(queue)

    def take(self) -> Job | None:
        """The next job, waiting for one to become ready; None when none is left.

        Raises:
            Stopped: the run was stopped.
        """
        with self._run.changed:
            self._run.changed.wait_for(lambda: self._ready or not self._heads or self._run.stopped)
            if self._run.stopped:
                raise Stopped
            if not self._ready:
                return None
            number = heapq.heappop(self._ready)
            del self._heads[number]
            return self._plan.jobs[number]

    def done(self, job: Job) -> None:
        """All bytes of a job are in its lanes' queues: their next jobs may run."""
        with self._run.changed:
            for file in self._files.pop(self._numbers[id(job)]):
                queue = self._queues[file]
                queue.popleft()
                self._next(queue)
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

    def _next(self, queue: deque[int]) -> None:
        if queue:
            number = queue[0]
            self._heads[number] += 1
            if self._heads[number] == len(self._files[number]):
                heapq.heappush(self._ready, number)
