"""Files written front to back, and read by range. Expected bytes and digests come from the data and hashlib."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flagrelease.durable.files import copy_whole, write_whole
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.shard.header import TensorMeta
from flagrelease.shard.reader import TensorReader
from flagrelease.shard.writer import BLOCK_BYTES, SequentialFile

SIZES = [0, 1, 511, 4095, 4096, 4097, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 4096 + 13]
_NOISE = np.random.default_rng(0).integers(0, 256, max(SIZES), dtype=np.uint8)


def noise(size: int) -> NDArray[np.uint8]:
    return _NOISE[:size].copy()


def write(path: Path, data: NDArray[np.uint8], step: int = 1 << 20) -> str:
    with SequentialFile(path, len(data)) as file:
        for at in range(0, len(data), step):
            file.append(data[at : at + step])
        return file.finish()


def write_and_forget(path: Path, data: NDArray[np.uint8], count: int) -> tuple[int, str]:
    """What a killed process leaves: `count` bytes given, the full blocks synced, nothing finished."""
    with SequentialFile(path, len(data)) as file:
        file.append(data[:count])
        return file.sync()


@pytest.fixture(params=["direct", "no direct open", "no direct write"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems as they answer O_DIRECT: with it, EINVAL at open (old tmpfs), or EINVAL at the write (some FUSE)."""
    real_open, real_pwrite = os.open, os.pwrite

    def open_(path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return real_open(path, flags, mode, **rest)

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_pwrite(fd, data, offset)

    kind: str = request.param
    if kind == "no direct open":
        monkeypatch.setattr(os, "open", open_)
    elif kind == "no direct write":
        monkeypatch.setattr(os, "pwrite", pwrite)
    return kind


@pytest.mark.parametrize("size", SIZES)
def test_bytes_and_digest_are_those_of_the_data(tmp_path: Path, size: int, file_system: str) -> None:
    data = noise(size)
    assert write(tmp_path / "f", data) == hashlib.sha256(data).hexdigest(), file_system
    assert (tmp_path / "f").read_bytes() == data.tobytes()


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, SIZES[-1]), max_size=12))
def test_how_the_data_are_cut_does_not_matter(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    data = noise(SIZES[-1])
    path = tmp_path_factory.mktemp("cuts") / "f"
    edges = [0, *sorted(cuts), len(data)]
    with SequentialFile(path, len(data)) as file:
        for begin, end in pairwise(edges):
            file.append(data[begin:end])
            assert file.position == end
        assert file.finish() == hashlib.sha256(data).hexdigest()
    assert path.read_bytes() == data.tobytes()
    path.unlink()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[: max(4096, len(data) // 3)], offset))
    data = noise(BLOCK_BYTES + 4097)
    assert write(tmp_path / "f", data) == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "f").read_bytes() == data.tobytes()


def test_stale_longer_file_is_cut_to_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * (BLOCK_BYTES + 9999))
    write(tmp_path / "f", noise(5000))
    assert (tmp_path / "f").read_bytes() == noise(5000).tobytes()


@pytest.mark.parametrize("given_bytes", [99, 101])
def test_finish_insists_on_the_planned_size(tmp_path: Path, given_bytes: int) -> None:
    with SequentialFile(tmp_path / "f", 100) as file:
        file.append(noise(given_bytes))
        with pytest.raises(AssertionError, match=f"f: {given_bytes} bytes given, 100 planned"):
            file.finish()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)])
def test_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "f", noise(10))
        assert (tmp_path / "f").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_umask_survives_files_that_finish_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask belongs to the process: reading it by setting it, in two threads, can leave it 0 for good."""
    real = os.umask
    both = threading.Barrier(2, timeout=1)

    def umask(mask: int) -> int:
        value = real(mask)
        if mask == 0:
            both.wait()
        return value

    before = real(0o027)
    try:
        monkeypatch.setattr(os, "umask", umask)
        threads = [threading.Thread(target=write, args=(tmp_path / f"f{n}", noise(10))) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert real(0o027) == 0o027
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    finally:
        real(before)


# --- going on after a kill


@pytest.mark.parametrize("count", [0, 1, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES - 1, 2 * BLOCK_BYTES])
def test_resumed_file_ends_with_the_same_bytes(tmp_path: Path, count: int, file_system: str) -> None:
    path, data = tmp_path / "f", noise(2 * BLOCK_BYTES + 777)
    offset, digest = write_and_forget(path, data, count)
    assert offset == count // BLOCK_BYTES * BLOCK_BYTES
    assert digest == hashlib.sha256(data[:offset]).hexdigest()
    with SequentialFile(path, len(data)) as file:
        assert file.resume(offset, digest)
        assert file.position == offset
        file.append(data[offset:])
        assert file.finish() == hashlib.sha256(data).hexdigest(), file_system
    assert path.read_bytes() == data.tobytes()


@pytest.mark.parametrize("offset", [1, 4095, BLOCK_BYTES + 1])
def test_resume_at_any_offset(tmp_path: Path, offset: int) -> None:
    """A journal's offsets are multiples of a block, but nothing breaks if the block size ever changes."""
    path, data = tmp_path / "f", noise(2 * BLOCK_BYTES)
    path.write_bytes(data[:offset].tobytes())
    with SequentialFile(path, len(data)) as file:
        assert file.resume(offset, hashlib.sha256(data[:offset]).hexdigest())
        file.append(data[offset:])
        assert file.finish() == hashlib.sha256(data).hexdigest()
    assert path.read_bytes() == data.tobytes()


@pytest.mark.parametrize("at", [0, 4096, BLOCK_BYTES - 1])
def test_changed_prefix_is_not_resumed_but_written_anew(tmp_path: Path, at: int) -> None:
    path, data = tmp_path / "f", noise(2 * BLOCK_BYTES)
    offset, digest = write_and_forget(path, data, BLOCK_BYTES + 5)
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)
    with SequentialFile(path, len(data)) as file:
        assert not file.resume(offset, digest)
        assert file.position == 0
        file.append(data)
        assert file.finish() == hashlib.sha256(data).hexdigest()
    assert path.read_bytes() == data.tobytes()


def test_file_shorter_than_its_journal_is_not_resumed(tmp_path: Path) -> None:
    path, data = tmp_path / "f", noise(2 * BLOCK_BYTES)
    offset, digest = write_and_forget(path, data, BLOCK_BYTES)
    os.truncate(path, BLOCK_BYTES - 1)
    with SequentialFile(path, len(data)) as file:
        assert not file.resume(offset, digest)
        assert file.position == 0


# --- what the system refuses


def disk_full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_names_the_file() -> None:
    """/dev/full takes no byte; it is not cleaned up, because the write fails before."""
    with (
        SequentialFile(Path("/dev/full"), BLOCK_BYTES) as file,
        pytest.raises(ResourceError, match=r"^/dev/full: cannot be written \(No space left on device\)$"),
    ):
        file.append(noise(BLOCK_BYTES))


@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate"])
def test_no_space_at_any_call_of_finish_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """File systems that allocate late say it at fsync."""
    monkeypatch.setattr(os, call, disk_full)
    with SequentialFile(tmp_path / "f", 10) as file:
        file.append(noise(10))
        with pytest.raises(ResourceError, match=r"/f: cannot be written \(No space left"):
            file.finish()


def test_no_space_at_sync_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", disk_full)
    with (
        SequentialFile(tmp_path / "f", 10) as file,
        pytest.raises(ResourceError, match=r"/f: cannot be written \(No space left"),
    ):
        file.sync()


def test_einval_without_direct_writes_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def invalid(*_: Any) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "pwrite", invalid)
    with SequentialFile(tmp_path / "f", BLOCK_BYTES) as file, pytest.raises(ResourceError, match="Invalid argument"):
        file.append(noise(BLOCK_BYTES))


def test_file_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"gone/f: cannot be written \(No such file or directory\)"):
        SequentialFile(tmp_path / "gone" / "f", 10)
    with pytest.raises(ResourceError, match=r"cannot be written \(Is a directory\)"):
        SequentialFile(tmp_path, 10)


# --- small files


Writer = Callable[[Path, bytes], object]


def _copy(path: Path, data: bytes) -> object:
    source = path.with_name("source")
    source.write_bytes(data)
    return copy_whole(source, path)


@pytest.fixture(params=[write_whole, _copy], ids=["write_whole", "copy_whole"])
def whole(request: pytest.FixtureRequest) -> Writer:
    writer: Writer = request.param
    return writer


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES + 1])
def test_small_file_is_replaced_whole(tmp_path: Path, whole: Writer, size: int) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / ".f.partial").write_bytes(b"left by a kill" * 1000)
    result = whole(tmp_path / "f", noise(size).tobytes())
    assert (tmp_path / "f").read_bytes() == noise(size).tobytes()
    assert not (tmp_path / ".f.partial").exists()
    assert result in (None, (size, hashlib.sha256(noise(size)).hexdigest()))


def test_folders_of_a_small_file_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "f", b"x")
    assert (tmp_path / "a" / "b" / "f").read_bytes() == b"x"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_small_file_keeps_its_old_content_when_the_disk_is_full(
    tmp_path: Path, whole: Writer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), disk_full)
    with pytest.raises(ResourceError, match=r"/f: cannot be written \(No space left"):
        whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"


def test_copy_of_a_file_that_is_gone_blames_the_source(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/gone: cannot be read \(No such file"):
        copy_whole(tmp_path / "gone", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


# --- reading


def stored(path: Path, begin: int, nbytes: int) -> TensorMeta:
    return TensorMeta("layers.0.w", "U8", (nbytes,), path, begin, begin + nbytes)


@settings(max_examples=50, deadline=None)
@given(begin=st.integers(0, 40), nbytes=st.integers(0, 60), data=st.data())
def test_reader_gives_the_bytes_of_the_range(
    tmp_path_factory: pytest.TempPathFactory, begin: int, nbytes: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "read"
    path.write_bytes(noise(100).tobytes())
    offset = data.draw(st.integers(0, nbytes))
    out = np.zeros(data.draw(st.integers(0, nbytes - offset)), dtype=np.uint8)
    with TensorReader() as reader:
        reader.read(stored(path, begin, nbytes), offset, out)
    np.testing.assert_array_equal(out, noise(100)[begin + offset : begin + offset + len(out)])


def test_reader_continues_short_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(noise(100).tobytes())
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:7]], offset))
    out = np.zeros(80, dtype=np.uint8)
    with TensorReader() as reader:
        reader.read(stored(tmp_path / "f", 10, 90), 5, out)
    np.testing.assert_array_equal(out, noise(100)[15:95])


def test_reader_refuses_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(noise(100).tobytes())
    tensor = stored(path, 50, 50)
    os.truncate(path, 99)
    with TensorReader() as reader:
        reader.read(tensor, 0, np.zeros(49, dtype=np.uint8))
        with pytest.raises(CheckpointError, match=r"/f: tensor 'layers\.0\.w': the file ends inside it: truncated"):
            reader.read(tensor, 0, np.zeros(50, dtype=np.uint8))


def test_reader_refuses_a_file_that_is_gone(tmp_path: Path) -> None:
    with TensorReader() as reader, pytest.raises(CheckpointError, match=r"/f: tensor 'layers\.0\.w': No such file"):
        reader.read(stored(tmp_path / "f", 0, 1), 0, np.zeros(1, dtype=np.uint8))


def test_reader_refuses_a_range_beyond_the_tensor(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(noise(100).tobytes())
    with TensorReader() as reader, pytest.raises(ValueError, match=r"3 \+ 3 bytes of 5"):
        reader.read(stored(tmp_path / "f", 0, 5), 3, np.zeros(3, dtype=np.uint8))


def test_reader_closes_its_files(tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    (tmp_path / "f").write_bytes(noise(100).tobytes())
    before = count()
    with TensorReader() as reader:
        reader.read(stored(tmp_path / "f", 0, 5), 0, np.zeros(5, dtype=np.uint8))
        assert count() == before + 1
    assert count() == before
