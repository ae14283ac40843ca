"""The append log: killed at every call, torn and damaged in every way, never read for what it is not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from crashes import Crash, Crashes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter

from flagrelease.durable.lines import LineFile
from flagrelease.durable.log import AppendLog
from flagrelease.errors import ResourceError


class Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    number: int
    text: str = ""


NOTES = [Note(number=n, text=text) for n, text in enumerate(["one", "zwei\u2028", "三", "four\r\n", "x" * 5000])]


def open_log(path: Path, version: int = 1, kind: str = "notes", **binding: str) -> AppendLog[Note]:
    return AppendLog(path, kind, version, TypeAdapter(Note), {"plan": "a", "source": "b"} | binding)


def fill(path: Path) -> None:
    """What a command does: whatever is not there yet is done, once."""
    with open_log(path) as log:
        for note in NOTES[len(log.records) :]:
            log.append(note, sync=note.number % 2 == 0)


def read(path: Path) -> list[Note]:
    with open_log(path) as log:
        return log.records


def test_records_come_back(tmp_path: Path) -> None:
    fill(tmp_path / "new" / "log")
    assert read(tmp_path / "new" / "log") == NOTES
    lines = (tmp_path / "new" / "log").read_bytes().decode().split("\n")
    assert [json.loads(line)["number"] for line in lines[1:-1]] == [0, 1, 2, 3, 4]


def test_killed_at_every_call_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = Crashes(monkeypatch)
    fill(tmp_path / "undisturbed" / "log")
    total, whole = crashes.calls, (tmp_path / "undisturbed" / "log").read_bytes()
    assert {"mkdir", "open", "pwrite", "fsync", "ftruncate"} <= set(crashes.seen)
    for stop_at in range(1, total + 1):
        path = tmp_path / str(stop_at) / "log"
        crashes.arm(stop_at)
        with pytest.raises(Crash):
            fill(path)
        crashes.disarm()
        fill(path)
        assert path.read_bytes() == whole


def test_cut_anywhere_it_goes_on(tmp_path: Path) -> None:
    """A kill, or a power failure, leaves any beginning of what was written, and zeros behind it on some disks."""
    fill(tmp_path / "log")
    whole = (tmp_path / "log").read_bytes()
    for length in [*range(300), len(whole) - 1]:
        for tail in (b"", b"\0" * 100):
            (tmp_path / "log").write_bytes(whole[:length] + tail)
            fill(tmp_path / "log")
            assert (tmp_path / "log").read_bytes() == whole, (length, tail)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_line_is_cut_with_what_follows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any byte that changes, in any line but the first; before, resuming ended in a traceback or took the damage."""
    path = tmp_path_factory.mktemp("log") / "log"
    fill(path)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    at = data.draw(st.integers(first, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    kept = read(path)
    assert kept == NOTES[: whole[:at].count(b"\n") - 1]
    fill(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"{}", b"[1]", b"null", b'{"number":3}', b"\xff\xfe", b"\0\0\0\0", b"", b'{"number":3,"crc32":"00000000"}']
)
def test_a_line_that_is_no_record_is_cut(tmp_path: Path, line: bytes) -> None:
    fill(tmp_path / "log")
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(whole + line + b"\n")
    assert read(tmp_path / "log") == NOTES
    assert (tmp_path / "log").read_bytes() == whole


def test_a_full_disk_tears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes ten bytes of a record and then none, as a full one does; later there is room again."""
    real, left = os.pwrite, [10]

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if left[0] is None:
            return real(descriptor, data[:7], offset)  # short, but it goes on
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count, left[0] = real(descriptor, data[: left[0]], offset), 0
        return count

    with open_log(tmp_path / "log") as log:
        log.append(NOTES[0], sync=True)
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(ResourceError, match=r"/log: cannot be written \(No space left on device\)"):
            log.append(NOTES[4], sync=True)
        left[0] = None  # type: ignore[call-overload]
        log.append(NOTES[1], sync=True)
    assert read(tmp_path / "log") == NOTES[:2]


def test_a_disk_that_stays_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even cutting the torn record off succeeds; the next opening cuts it."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.pwrite
    answers = iter([lambda *a: real(a[0], a[1][:10], a[2]), refuse])
    with open_log(tmp_path / "log") as log:
        log.append(NOTES[0], sync=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda *a: next(answers)(*a))
            patch.setattr(os, "ftruncate", refuse)
            with pytest.raises(ResourceError, match="No space left"):
                log.append(NOTES[1], sync=True)
    assert read(tmp_path / "log") == NOTES[:1]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    notes = [Note(number=n, text="y" * n) for n in range(200)]
    with open_log(tmp_path / "log") as log:
        threads = [
            threading.Thread(target=lambda part=part: [log.append(n, sync=False) for n in notes[part::4]])  # type: ignore[misc]
            for part in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(read(tmp_path / "log"), key=lambda note: note.number) == notes


# --- what is refused, and left as it is


@pytest.mark.parametrize("content", [b"my thesis", b"my thesis\nchapter 1\n", b'{"plan":"a"}\n{"tensor":1}\n', b"{}"])
def test_another_file_is_refused_and_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(ResourceError, match=r"/log: (was not written by this command|is not a log of notes)"):
        open_log(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == content


def test_another_version_kind_or_binding_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "log")
    whole = (tmp_path / "log").read_bytes()
    with pytest.raises(ResourceError, match=r"another version of flagrelease \(format 1, this one writes 2\)"):
        open_log(tmp_path / "log", version=2)
    with pytest.raises(ResourceError, match="is not a log of letters"):
        open_log(tmp_path / "log", kind="letters")
    with pytest.raises(ResourceError, match="was begun with another plan and another source; remove it"):
        open_log(tmp_path / "log", plan="c", source="d")
    with pytest.raises(ResourceError, match="was begun with another chip; remove it"):
        open_log(tmp_path / "log", chip="metax")
    assert (tmp_path / "log").read_bytes() == whole


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    fill(tmp_path / "log")
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'rb'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ResourceError, match="/log: in use by another flagrelease process"):
            open_log(tmp_path / "log")
        other.kill()
    assert read(tmp_path / "log") == NOTES


def test_a_file_that_was_replaced_while_it_was_locked_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder may remove the file between our opening it and our locking it: a lock on no name guards nothing."""
    import fcntl

    real, calls = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / "log").unlink()
        calls.append(operation)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    file = LineFile(tmp_path / "log", b"{")
    assert len(calls) == 2
    file.append(b"{}", sync=True)
    file.close()
    assert (tmp_path / "log").read_bytes() == b"{}\n"


def test_a_file_that_cannot_be_opened_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot be written \(Is a directory\)"):
        open_log(tmp_path)
