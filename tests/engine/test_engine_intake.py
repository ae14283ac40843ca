"""Bytes that several threads read: all of them, in order, and the first failure is the caller's."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from flagrelease.device import Device, open_device
from flagrelease.engine import intake as intake_module
from flagrelease.engine.intake import Intake
from flagrelease.errors import CheckpointError
from flagrelease.shard.header import TensorMeta

CPU = open_device("cpu")


@pytest.fixture
def stored(tmp_path: Path) -> tuple[TensorMeta, np.ndarray]:
    """A tensor of bytes that does not begin where its file does."""
    content = np.random.default_rng(3).integers(0, 256, 1000, dtype=np.uint8)
    (tmp_path / "file").write_bytes(b"before" + content.tobytes())
    return TensorMeta("x", "U8", (1000,), tmp_path / "file", 6, 1006), content


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 990])
def test_a_large_tensor_is_read_in_pieces(
    stored: tuple[TensorMeta, np.ndarray], size: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta, content = stored
    monkeypatch.setattr(intake_module, "_PIECE", 100)
    with Intake(open_device(device), threads=3) as intake:
        assert np.array_equal(intake.fetch_large(meta, 7, size).cpu().numpy(), content[7 : 7 + size])
        assert np.array_equal(intake.fetch(meta, 7, size).cpu().numpy(), content[7 : 7 + size])


def test_works_run_beside_each_other_and_come_in_order() -> None:
    together = threading.Barrier(3, timeout=240)  # passed only if three works run at once

    def work(n: int) -> int:
        together.wait()
        return n

    with Intake(CPU, threads=3) as intake:
        assert list(intake.each(work, range(9))) == list(range(9))


def test_threads_work_on_the_device_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    # Memory is pinned for the current device of a thread: all ranks' threads would have used the first one.
    current: set[int] = set()
    monkeypatch.setattr(Device, "set_current", lambda device: current.add(threading.get_ident()))
    with Intake(CPU, threads=2) as intake:
        worked = set(intake.each(lambda n: threading.get_ident(), range(20)))
    assert worked
    assert worked <= current


def test_few_works_are_begun_ahead() -> None:
    begun: list[int] = []
    with Intake(CPU, threads=2) as intake:
        results = intake.each(begun.append, range(1000))
        next(results)
        assert len(begun) <= 2 * 2 + 1, "memory is bounded by what is ahead"
        results.close()
    assert len(begun) <= 2 * 2 + 1


def test_the_first_failure_is_raised(stored: tuple[TensorMeta, np.ndarray]) -> None:
    meta, _ = stored
    short = TensorMeta("x", "U8", (2000,), meta.file, 6, 2006)
    with Intake(CPU, threads=2) as intake:
        with pytest.raises(CheckpointError, match="tensor 'x': the file ends inside it"):
            list(intake.each(lambda begin: intake.fetch(short, begin, 300), range(0, 1800, 300)))
        assert len(intake.fetch(meta, 0, 10)) == 10, "threads go on after it"


def test_a_large_tensor_of_a_cut_file_is_refused(
    stored: tuple[TensorMeta, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    meta, _ = stored
    monkeypatch.setattr(intake_module, "_PIECE", 64)
    short = TensorMeta("x", "U8", (2000,), meta.file, 6, 2006)
    with Intake(CPU) as intake, pytest.raises(CheckpointError, match="truncated"):
        intake.fetch_large(short, 0, 2000)
