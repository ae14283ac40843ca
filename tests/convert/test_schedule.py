"""Which job a worker gets, who may take the last buffers, and that no run stands still or outlives an error."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import contents, plan_of, run_plan

from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running import buffers, chunks, conversion, work
from flagrelease.convert.running.buffers import Buffers, Run, Standing, Stopped
from flagrelease.convert.running.journal import open_journal
from flagrelease.convert.running.lanes import Lane
from flagrelease.convert.running.schedule import Schedule
from flagrelease.errors import ResourceError
from flagrelease.shard import writer
from flagrelease.shard.reader import TensorReader
from flagrelease.shard.writer import SECTOR, SequentialFile, in_sectors, sector_offset


class Begun:
    """A schedule of a conversion that has not begun, and what a file's threads would do."""

    def __init__(self, plan: Plan, out: Path, files_at_once: int) -> None:
        self.plan = plan
        self.journals = {
            number: journal
            for number, release in enumerate(plan.releases)
            if (journal := open_journal(out / release.target.folder, plan, release)) is not None
        }
        run = Run()
        self.lanes = {number: Lane(run, file, self.journals[file.release]) for number, file in enumerate(plan.files)}
        self.schedule = Schedule(run, plan, self.lanes, self.journals, files_at_once)

    def files(self, number: int) -> set[int]:
        return {piece.file for product in self.plan.jobs[number].products
                for pieces in product.pieces.values() for piece in pieces}  # fmt: skip

    def write_all(self, number: int) -> None:
        """As if the files' threads had caught up with a job."""
        for product in self.plan.jobs[number].products:
            for pieces in product.pieces.values():
                for piece in pieces:
                    lane = self.lanes[piece.file]
                    lane.position = max(lane.position, piece.end)

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()


@pytest.mark.parametrize("files_at_once", [1, 3, 16])
@pytest.mark.parametrize("targets", [("bf16:hf",), ("bf16:mp8",), ("bf16:mp8", "fp8:hf")], ids=str)
def test_every_job_is_taken_once_and_every_file_in_its_own_order(
    targets: tuple[str, ...], files_at_once: int, checkpoint: Path, tmp_path: Path
) -> None:
    begun = Begun(plan_of(checkpoint, *targets, max_file_bytes=2_000_000), tmp_path, files_at_once)
    taken: list[int] = []
    running: list[int] = []
    rng = np.random.default_rng(0)
    while (number := begun.schedule.take()) is not None:
        taken.append(number)
        running.append(number)
        while running and (len(running) > 4 or rng.random() < 0.4):
            ended = running.pop(int(rng.integers(len(running))))
            begun.write_all(ended)
            begun.schedule.done(ended)
    assert sorted(taken) == list(range(len(begun.plan.jobs)))
    for file in begun.lanes:
        own = [number for number in taken if file in begun.files(number)]
        assert own == sorted(own), file
    begun.close()


@pytest.mark.parametrize("files_at_once", [1, 2, 5])
def test_as_many_files_of_the_hf_layout_grow_as_there_are_workers(
    files_at_once: int, checkpoint: Path, tmp_path: Path
) -> None:
    """One file was written at a time, so one core hashed, however many there were."""
    begun = Begun(plan_of(checkpoint, "bf16:hf", max_file_bytes=2_000_000), tmp_path, files_at_once)
    assert len(begun.lanes) > 6
    first = [begun.schedule.take() for _ in range(files_at_once)]
    assert [begun.files(number) for number in first if number is not None] == [{n} for n in range(files_at_once)]
    following = begun.schedule.take()
    assert following is not None
    assert begun.files(following) <= set(range(files_at_once))
    begun.close()


def test_the_file_with_the_least_to_write_gets_the_next_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """In the source's order the experts of one rank come first, and seven of eight files had nothing to hash."""
    begun = Begun(plan_of(checkpoint, "bf16:mp8"), tmp_path, 8)
    ahead: dict[int, int] = dict.fromkeys(begun.lanes, 0)
    most, expert_jobs, taken = 0, 0, 0
    while (number := begun.schedule.take()) is not None:
        files = begun.files(number)
        if len(files) == 1:
            expert_jobs += 1
            ahead[files.pop()] += 1
            most = max(most, max(ahead.values()) - min(ahead.values()))
        else:
            ahead = dict.fromkeys(begun.lanes, 0)
        taken += 1
        begun.schedule.done(number)
    assert expert_jobs > taken // 2
    assert most <= 2
    begun.close()


def test_who_leaves_buffers_to_whom(checkpoint: Path, tmp_path: Path) -> None:
    begun = Begun(plan_of(checkpoint, "bf16:hf", max_file_bytes=2_000_000), tmp_path, 2)
    schedule = begun.schedule
    a, b, c = schedule.take(), schedule.take(), schedule.take()
    assert a is not None
    assert b is not None
    assert c is not None
    assert begun.files(a) != begun.files(b)
    assert begun.files(c) in (begun.files(a), begun.files(b))
    assert schedule.standing(a) == Standing(0, 0), "the earliest job of all"
    assert schedule.standing(b) == Standing(1, 3), "the earliest job of its file"
    assert schedule.standing(c) == Standing(2, 5), "a job that runs ahead"
    schedule.done(a)
    schedule.done(b)
    assert schedule.standing(c) == Standing(2, 0)
    begun.close()


def test_a_free_buffer_goes_to_the_earliest_job_that_waits_and_to_no_other() -> None:
    run = Run()
    taken = Buffers(run, 2, 1 << 10, lambda job: Standing(job, 0))
    held = [taken.take(100, 0) for _ in range(2)]
    got: list[int] = []

    def wait(job: int) -> None:
        with suppress(Stopped):
            taken.take(100, job)
            got.append(job)

    threads = []
    for job in (3, 1, 2):
        threads.append(threading.Thread(target=wait, args=(job,), daemon=True))
        threads[-1].start()
        while len(taken._waiting) < len(threads):
            time.sleep(0.001)
    taken.give(held.pop())
    threads[1].join()
    assert got == [1]
    taken.give(held.pop())
    threads[2].join()
    assert got == [1, 2]
    run.stop()
    threads[0].join()
    assert got == [1, 2], "a job that waits when the run is stopped gets nothing"


def test_a_job_that_must_leave_a_buffer_waits_for_another() -> None:
    run = Run()
    leaves = {0: 0, 1: 1}
    taken = Buffers(run, 2, 1 << 10, lambda job: Standing(job, leaves[job]))
    held = taken.take(100, 1)
    ended = threading.Event()

    def ahead() -> None:
        with pytest.raises(Stopped):
            taken.take(100, 1)
        ended.set()

    thread = threading.Thread(target=ahead, daemon=True)
    thread.start()
    while not taken._waiting:
        time.sleep(0.001)
    taken.take(100, 0)  # the one that was left
    assert not ended.is_set()
    run.stop()
    thread.join()
    assert ended.is_set()
    assert held.nbytes == 100


@pytest.mark.parametrize("targets", [("bf16:hf", "native:hf"), ("bf16:mp8", "fp8:hf")], ids=str)
def test_the_fewest_buffers_are_enough(
    targets: tuple[str, ...], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three buffers for seven workers, chunks far smaller than tensors: no run stands still."""
    plan = plan_of(checkpoint, *targets, max_file_bytes=2_000_000)
    run_plan(plan, tmp_path / "usual")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64 << 10)
    real = buffers.Buffers

    def few(run: Run, count: int, nbytes: int, standing: Any) -> Buffers:
        return real(run, 3, nbytes, standing)

    monkeypatch.setattr(conversion, "Buffers", few)
    run_plan(plan, tmp_path / "few", workers=7)
    assert contents(tmp_path / "few") == contents(tmp_path / "usual")


@pytest.mark.parametrize("where", ["read", "decode", "write", "hash"])
def test_an_error_in_any_thread_ends_all(
    where: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(checkpoint, "bf16:mp8", "native:hf", max_file_bytes=2_000_000)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64 << 10)
    count, lock = [0], threading.Lock()

    def failing(real: Any) -> Any:
        def call(*words: Any) -> Any:
            with lock:
                count[0] += 1
                if count[0] == 10:
                    raise ResourceError(f"planted in {where}")
            return real(*words)

        return call

    if where == "hash":
        real = hashlib.sha256
        hashing = SimpleNamespace(sha256=lambda: SimpleNamespace(update=failing(real().update), hexdigest=lambda: ""))
        monkeypatch.setattr(writer, "hashlib", hashing)
    else:
        owner, name = {
            "read": (TensorReader, "read"),
            "decode": (work, "require_numbers"),
            "write": (SequentialFile, "_write"),
        }[where]
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    before = threading.active_count()
    with pytest.raises(ResourceError, match=f"planted in {where}"):
        run_plan(plan, tmp_path / "out", workers=3)
    assert threading.active_count() == before
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("position", [0, 1, 4095, 4096, 70_001])
@pytest.mark.parametrize("nbytes", [256 << 10, (256 << 10) + 1, (1 << 20) + 4097])
def test_data_that_lie_as_their_offset_are_written_from_where_they_are(
    position: int, nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(position)
    head, tail = rng.integers(0, 256, position, dtype=np.uint8), rng.integers(0, 256, 5000, dtype=np.uint8)
    data = in_sectors(np.empty(nbytes + 2 * SECTOR, np.uint8), nbytes, sector_offset(position))
    data[:] = rng.integers(0, 256, nbytes, dtype=np.uint8)
    copied: list[int] = []
    real = np.copyto
    monkeypatch.setattr(writer.np, "copyto", lambda to, what: (copied.append(len(what)), real(to, what)))
    path = tmp_path / "f"
    with SequentialFile(path, position + nbytes + len(tail)) as file:
        for part in (head, data, tail):
            file.append(part)
        sha256 = file.finish()
    whole = np.concatenate([head, data, tail]).tobytes()
    assert path.read_bytes() == whole
    assert sha256 == hashlib.sha256(whole).hexdigest()
    assert sum(copied) < position + len(tail) + 2 * SECTOR
