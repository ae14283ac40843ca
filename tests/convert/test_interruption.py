"""A kill at any moment: the same command finishes the work and ends with the bytes of an undisturbed run."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crashes import Crash, Crashes
from harness import contents, plan_of, run_plan

from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.running import assembly, chunks, conversion, lanes
from flagrelease.convert.running.conversion import convert
from flagrelease.convert.running.journal import WORK_FOLDER, open_journal
from flagrelease.errors import ResourceError
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.shard import writer

TARGETS = ("bf16:mp8", "fp8:hf")
FOLDERS = ("bf16-mp8", "fp8-hf")


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    run_plan(plan_of(checkpoint, *TARGETS), out)
    return contents(out)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, chunks and checkpoints small enough that a tiny conversion has hundreds of moments to stop at."""
    monkeypatch.setattr(writer, "BLOCK_BYTES", 64 << 10)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(lanes, "CHECKPOINT_BYTES", 256 << 10)


# Runs the real command line with small steps, so that a kill finds files half written and checkpoints taken.
_DRIVER = """
import sys
from flagrelease.convert.running import chunks, lanes
from flagrelease.shard import writer
writer.BLOCK_BYTES = chunks.CHUNK_BYTES = 64 << 10
lanes.CHECKPOINT_BYTES = 256 << 10
from flagrelease.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("enough", [pytest.param(6, id="few"), pytest.param(60, id="many", marks=pytest.mark.slow)])
def test_kill_at_random_moments(enough: int, checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(20261122)
    targets = [word for target in TARGETS for word in ("--target", target)]
    command = [sys.executable, "-c", _DRIVER, "convert", str(checkpoint), "--out", str(tmp_path / "out"), *targets]
    kills = {"writing": 0, "finished": 0}
    for attempt in range(200):
        folder = tmp_path / f"try{attempt}"
        command[command.index("--out") + 1] = str(folder)
        patience = 0.9  # seconds; undisturbed, the rest takes about 0.7
        while True:  # kill this conversion again and again until it gets through
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            _wait_for_work(folder, process)
            try:
                process.wait(timeout=rng.uniform(0, patience))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
            if process.returncode == 0:
                kills["finished"] += 1
                break
            assert process.returncode == -signal.SIGKILL, errors.decode()
            kills["writing"] += 1
            patience *= 1.3  # a busy machine may not have reached the next checkpoint
            _assert_nothing_half_done_looks_whole(folder)
        assert contents(folder) == undisturbed
        if kills["writing"] >= enough:
            return
    pytest.fail(f"too few kills hit: {kills}")


def _wait_for_work(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the conversion has begun to write (or has ended): start-up is no interesting moment."""
    before = sum(path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")) if folder.exists() else 0
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if sum(path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")) != before:
                return
        except FileNotFoundError:
            return
        time.sleep(0.002)


def _assert_nothing_half_done_looks_whole(out: Path) -> None:
    for folder in (out / name for name in FOLDERS):
        unfinished = (folder / WORK_FOLDER).exists()
        if folder.exists() and not (folder / MANIFEST_NAME).exists():
            assert unfinished or not any(folder.iterdir())


def test_stop_at_system_calls_of_a_small_conversion(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the next test, over few files: every call that begins a folder, and a sample of those that follow."""
    plan = plan_of(checkpoint, "native:hf")
    crashes = Crashes(monkeypatch)
    run_plan(plan, tmp_path / "undisturbed", workers=1)
    total, whole = crashes.calls, contents(tmp_path / "undisturbed")
    for stop_at in [*range(1, 25), *range(25, total, 23), total]:
        out = tmp_path / str(stop_at)
        crashes.arm(stop_at)
        with pytest.raises(Crash):
            run_plan(plan, out, workers=1)
        crashes.disarm()
        run_plan(plan, out, workers=1)
        assert contents(out) == whole, stop_at
        shutil.rmtree(out)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    "stride",
    [
        pytest.param(131, id="sample", marks=pytest.mark.slow),
        pytest.param(1, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(5400)]),
    ],
)
def test_stop_at_every_system_call(
    stride: int, checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the calls that change the disk; stop at the n-th, for each n (or a sample); go on; compare."""
    plan = plan_of(checkpoint, *TARGETS)
    counter = Crashes(monkeypatch)
    run_plan(plan, tmp_path / "counted")
    total = counter.calls
    assert total > 300
    assert {"open", "mkdir", "pwrite", "fsync", "replace", "unlink", "rmdir"} <= set(counter.seen)
    for stop_at in range(1, total, stride):
        out = tmp_path / "out"
        counter.arm(stop_at)
        try:
            run_plan(plan, out)
        except Crash:
            pass
        else:
            assert counter.calls < stop_at > total - 50  # threads make a few calls more in one run than in another
        counter.disarm()
        _assert_nothing_half_done_looks_whole(out)
        run_plan(plan, out)
        assert contents(out) == undisturbed, stop_at
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("left", ["all", "lock", "folder"])
def test_stop_between_the_manifest_and_the_end_of_the_work_folder(
    left: str, checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    plan = plan_of(checkpoint, *TARGETS)
    run_plan(plan, tmp_path)
    work_folder = tmp_path / FOLDERS[0] / WORK_FOLDER
    work_folder.mkdir()
    for name in {"all": ("begun.json", "journal.jsonl", "lock"), "lock": ("lock",), "folder": ()}[left]:
        (work_folder / name).write_bytes(b"{}\n")
    if left != "folder":
        with (work_folder / "lock").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(ResourceError, match="in use by another flagrelease process"):
                run_plan(plan, tmp_path)
    run_plan(plan, tmp_path)
    assert not work_folder.exists()
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["notes.txt", "notes/mine.txt"])
def test_a_file_of_the_user_in_the_work_folder_is_named(
    finished: bool, name: str, checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """It ended the next run with the system's own words, or was removed."""
    plan = plan_of(checkpoint, *TARGETS)
    if finished:
        run_plan(plan, tmp_path)
    else:
        journal = open_journal(tmp_path / FOLDERS[0], plan, plan.releases[0])
        assert journal is not None
        journal.close()
    notes = tmp_path / FOLDERS[0] / WORK_FOLDER / name
    notes.parent.mkdir(exist_ok=True, parents=True)
    notes.write_text("mine")
    with pytest.raises(
        ResourceError, match=r"\.flagrelease/notes(\.txt)?: flagrelease did not write this; move it away"
    ):
        run_plan(plan, tmp_path)
    assert notes.read_text() == "mine"
    shutil.rmtree(notes.parent) if "/" in name else notes.unlink()
    run_plan(plan, tmp_path)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("left", [(), ("lock",), ("lock", ".begun.json.partial"), ("lock", "begun.json")])
def test_stopped_before_the_journal_was_begun(
    left: tuple[str, ...], checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A work folder without a journal was refused for ever as not begun by flagrelease."""
    plan = plan_of(checkpoint, *TARGETS)
    journal = open_journal(tmp_path / FOLDERS[0], plan, plan.releases[0])
    assert journal is not None
    journal.close()
    work_folder = tmp_path / FOLDERS[0] / WORK_FOLDER
    for path in work_folder.iterdir():
        if path.name not in left:
            path.unlink()
    run_plan(plan, tmp_path)
    assert contents(tmp_path) == undisturbed


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("placed", [False, True])
def test_a_finished_file_that_was_damaged_is_written_anew(
    placed: bool, checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for its size, and the manifest then vouched for bytes that were not there."""
    plan = plan_of(checkpoint, *TARGETS)

    def stop(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(conversion if not placed else assembly, "assemble" if not placed else "sync_folder", stop)
    with pytest.raises(Crash):
        run_plan(plan, tmp_path)
    monkeypatch.undo()
    folder = tmp_path / FOLDERS[0]
    path = (folder if placed else folder / WORK_FOLDER) / "model0-mp8.safetensors"
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    run_plan(plan, tmp_path)
    assert contents(tmp_path) == undisturbed


@pytest.mark.usefixtures("small_steps")
def test_a_resumed_conversion_needs_only_the_space_that_it_has_not_got_yet(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of its own unfinished files were asked for again, so a tight disk refused to let it finish."""
    plan = plan_of(checkpoint, *TARGETS)
    crashes = Crashes(monkeypatch)
    crashes.arm(400)
    with pytest.raises(Crash):
        run_plan(plan, tmp_path)
    crashes.disarm()
    allocated = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*.safetensors"))
    assert allocated > 0
    free = plan.bytes_to_write - allocated + (1 << 16)
    needed = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: needed.append(path) or usage._replace(free=free))  # type: ignore[func-returns-value]
    run_plan(plan, tmp_path)
    assert len(needed) == 1
    assert contents(tmp_path) == undisturbed
    with pytest.raises(ResourceError, match=f"are still to be written, {free:,} are free"):
        run_plan(plan, tmp_path / "another")


def test_the_first_progress_is_what_an_earlier_run_wrote(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, *TARGETS)
    told: list[int] = []
    convert(plan, tmp_path, workers=1, lookup=cpu_lookup, progress=told.append)
    assert told[0] == 0
    told.clear()
    convert(plan, tmp_path, workers=1, lookup=cpu_lookup, progress=told.append)
    assert told == [plan.bytes_to_write]


@pytest.mark.usefixtures("small_steps")
def test_finished_files_are_not_done_again(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(checkpoint, "bf16:hf", max_file_bytes=2_000_000)
    counter = Crashes(monkeypatch)
    counter.arm(900)
    with pytest.raises(Crash):
        run_plan(plan, tmp_path, workers=1)
    counter.disarm()
    finished = {path: path.stat().st_mtime_ns for path in _finished(tmp_path / "bf16-hf")}
    assert len(finished) >= 3
    written: list[int] = []
    pwrite = os.pwrite

    def watch(fd: int, data: bytes, offset: int) -> int:
        written.append(fd and len(data))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", watch)
    run_plan(plan, tmp_path, workers=1)
    sizes = sum((tmp_path / "bf16-hf" / path.name).stat().st_size for path in finished)
    assert sum(written) <= plan.releases[0].size - sizes + (64 << 10) * len(plan.files)
    for path, stamp in finished.items():
        assert (tmp_path / "bf16-hf" / path.name).stat().st_mtime_ns == stamp


def _finished(folder: Path) -> list[Path]:
    import json

    lines = [json.loads(line) for line in (folder / WORK_FOLDER / "journal.jsonl").read_text().splitlines()[1:]]
    ends = {record["file"]: record["offset"] for record in lines if "file" in record}
    paths = [folder / WORK_FOLDER / name for name in ends]
    return [path for path in paths if path.stat().st_size == ends[path.name] and path.stat().st_size % 4096]


@pytest.mark.usefixtures("small_steps")
def test_a_changed_partial_file_is_written_anew(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(checkpoint, *TARGETS)
    counter = Crashes(monkeypatch)
    counter.arm(250)
    with pytest.raises(Crash):
        run_plan(plan, tmp_path)
    counter.disarm()
    for path in tmp_path.glob(f"*/{WORK_FOLDER}/*.safetensors"):
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"\xff\xff\xff\xff")
    run_plan(plan, tmp_path)
    assert contents(tmp_path) == undisturbed


def test_a_torn_journal_line_is_forgotten(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(checkpoint, *TARGETS)
    counter = Crashes(monkeypatch)
    counter.arm(60)
    with pytest.raises(Crash):
        run_plan(plan, tmp_path)
    counter.disarm()
    for path in tmp_path.glob(f"*/{WORK_FOLDER}/journal.jsonl"):
        path.write_bytes(path.read_bytes()[:-7])
    run_plan(plan, tmp_path)
    assert contents(tmp_path) == undisturbed


def test_a_complete_release_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, "bf16:mp8")
    run_plan(plan, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run_plan(plan, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps


@pytest.mark.usefixtures("small_steps")
def test_a_folder_begun_under_another_plan_or_source_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Crashes(monkeypatch)
    counter.arm(200)
    with pytest.raises(Crash):
        run_plan(plan_of(checkpoint, "bf16:mp16"), tmp_path)
    counter.disarm()
    with pytest.raises(ResourceError, match="begun for another plan"):
        run_plan(plan_of(checkpoint, "bf16:mp16", o_groups="split"), tmp_path)
    with pytest.raises(ResourceError, match="begun for another plan"):
        run_plan(plan_of(checkpoint, "bf16:mp16", rank_part_bytes=10**6), tmp_path)
    file = next(checkpoint.glob("*.safetensors"))
    stamp = file.stat()
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    try:
        with pytest.raises(ResourceError, match="begun for another state of the source"):
            run_plan(plan_of(checkpoint, "bf16:mp16"), tmp_path)
    finally:
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    run_plan(plan_of(checkpoint, "bf16:mp16"), tmp_path)


def test_a_finished_folder_of_another_plan_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    run_plan(plan_of(checkpoint, "bf16:mp16"), tmp_path)
    with pytest.raises(ResourceError, match="another plan"):
        run_plan(plan_of(checkpoint, "bf16:mp16", o_groups="split"), tmp_path)
    (tmp_path / "bf16-mp16" / "model3-mp16.safetensors").unlink()
    with pytest.raises(ResourceError, match="model3-mp16"):
        run_plan(plan_of(checkpoint, "bf16:mp16"), tmp_path)


def test_two_conversions_at_once_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, "bf16:mp8")
    journal = open_journal(tmp_path / "bf16-mp8", plan, plan.releases[0])
    assert journal is not None
    with pytest.raises(ResourceError, match="another flagrelease process"):
        run_plan(plan, tmp_path)
    journal.close()
    run_plan(plan, tmp_path)
