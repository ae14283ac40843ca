"""`Schedule`: hands out the jobs of a plan so that all open files grow at the same pace.

A file is hashed from its first byte to its last, by one core. So as many files as there are workers must grow at once,
and each must get bytes as fast as the others. The plan's order does not do that: it follows the source, where the
experts of one rank stand together, and one file of the hf layout behind the other. Here a job can be taken when it is
the next one of every file that it gives bytes to; of those, the one whose file has the least still to write is taken.

The order of taking satisfies every file, so nothing ever waits for a job that is taken later. The earliest running job
waits for no other, and it alone may take the last buffers: that is why work never stands still. The earliest running
job of a file comes next; jobs that run ahead of it leave some buffers to both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from flagrelease.convert.planning.jobs import Job, Piece
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.buffers import Run, Standing, Stopped
from flagrelease.convert.running.journal import Journal, TensorResult
from flagrelease.convert.running.lanes import Lane

# The earliest job fills one buffer while its file empties another, and holds the codes; that of a file needs two.
_FOR_THE_EARLIEST, _FOR_A_FILE = 3, 2


class Schedule:
    """The jobs of a plan that are still to be done, handed out to workers by their numbers."""

    def __init__(
        self, run: Run, plan: Plan, lanes: dict[int, Lane], journals: dict[int, Journal], files_at_once: int
    ) -> None:
        """Leave out every job whose bytes are all in files of an earlier run and whose digests are recorded.

        Args:
            run, plan, lanes, journals: of the conversion.
            files_at_once: begin no further file while this many grow, as long as these have jobs to take.
        """
        self._run = run
        self._plan = plan
        self._lanes = lanes
        self._journals = journals
        self._files_at_once = files_at_once
        self._taken = 0
        self._place: dict[int, int] = {}  # of running jobs, in the order of taking
        self._files: dict[int, tuple[int, ...]] = {}  # of jobs that are not done
        self._to_take: dict[int, deque[int]] = {}  # by file
        self._running: dict[int, deque[int]] = {}  # by file that grows, in the order of taking
        self._given: dict[int, int] = {}  # by file: where the bytes of taken jobs end
        self._ready: set[int] = set()  # jobs of files that grow, each the next one of all its files
        self._beginning: list[int] = []  # a heap of jobs as these, but of a file that does not grow yet
        for number, job in enumerate(plan.jobs):
            files = tuple(sorted({piece.file for piece in _unwritten(job, lanes)}))
            if files or self._unrecorded(job):
                self._files[number] = files
                for file in files:
                    self._to_take.setdefault(file, deque()).append(number)
        for number in self._files:
            self._enter_if_ready(number)

    def take(self) -> int | None:
        """The number of the next job; None when none is left.

        Raises:
            Stopped: the run was stopped.
        """
        with self._run.lock:
            if self._run.stopped:
                raise Stopped
            if not self._ready and not self._beginning:
                return None
            if self._beginning and (not self._ready or len(self._running) < self._files_at_once):
                number = heappop(self._beginning)
            else:
                number = min(self._ready, key=lambda one: (self._least_to_write(one), one))
                self._ready.remove(number)
            self._begin(number)
            return number

    def standing(self, number: int) -> Standing:
        """Where a running job stands. To be asked with the run's lock held."""
        place = self._place[number]
        if place == next(iter(self._place.values())):
            return Standing(place, 0)
        if all(self._running[file][0] == number for file in self._files[number]):
            return Standing(place, _FOR_THE_EARLIEST)
        first_of_files = {running[0] for running in self._running.values() if running}
        return Standing(place, _FOR_THE_EARLIEST + _FOR_A_FILE * (len(first_of_files) - 1))

    def done(self, number: int) -> None:
        """All bytes of a job are on their way: another one is now the first."""
        with self._run.lock:
            del self._place[number]
            for file in self._files.pop(number):
                self._running[file].remove(number)
                if not self._running[file] and not self._to_take[file]:
                    del self._running[file]
            self._run.wake()

    def _begin(self, number: int) -> None:
        self._place[number] = self._taken
        self._taken += 1
        for piece in _unwritten(self._plan.jobs[number], self._lanes):
            self._given[piece.file] = max(self._given.get(piece.file, 0), piece.end)
        for file in self._files[number]:
            self._running.setdefault(file, deque()).append(number)
            self._to_take[file].popleft()
        for following in {self._to_take[file][0] for file in self._files[number] if self._to_take[file]}:
            self._enter_if_ready(following)

    def _enter_if_ready(self, number: int) -> None:
        files = self._files[number]
        if all(self._to_take[file][0] == number for file in files):
            if all(file in self._running for file in files):
                self._ready.add(number)
            else:
                heappush(self._beginning, number)

    def _least_to_write(self, number: int) -> int:
        """Bytes that were given to a file of the job and are not in it yet; of the file that has the fewest."""
        return min((self._given[file] - self._lanes[file].position for file in self._files[number]), default=0)

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


def _unwritten(job: Job, lanes: dict[int, Lane]) -> Iterator[Piece]:
    """The pieces of a job that are to be written, whole or in part."""
    for product in job.products:
        for pieces in product.pieces.values():
            for piece in pieces:
                if piece.file in lanes and piece.end > lanes[piece.file].resume_at:
                    yield piece
