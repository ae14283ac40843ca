"""Tables that stay with the host: mapped, pinned where a device says that it can, and what is said where it cannot."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from flagrelease.device import Device, open_device
from flagrelease.engine import host_rows as module
from flagrelease.engine.host_rows import HostRows, host_rows
from flagrelease.engine.intake import Intake
from flagrelease.engine.kernels.reference import v41
from flagrelease.engine.placement import RankSlice
from flagrelease.engine.stored import StoredTensors
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP8
from flagrelease.model.stored import StoredWeight
from flagrelease.model.tensors import Split, Storage, TensorSpec
from flagrelease.shard.header import TensorMeta

CPU = Device("cpu", 0, "gloo")
BEFORE = 1000  # bytes of the file that are not the tensor's


@dataclass
class Pinning:
    """A device that is asked to reach memory: its answers in turn, and what it was asked."""

    answers: list[str | None]
    type: str = "pinning"
    asked: list[tuple[int, int]] = field(default_factory=list)
    read_only: list[bool] = field(default_factory=list)

    def reach_host(self, address: int, size: int, *, read_only: bool) -> str | None:
        self.asked.append((address, size))
        self.read_only.append(read_only)
        return self.answers[len(self.asked) - 1]


@pytest.fixture
def intake() -> Iterator[Intake]:
    with Intake(CPU, threads=2) as opened:
        yield opened


@pytest.fixture
def stored(tmp_path: Path) -> TensorMeta:
    """A table of 700 rows of 32 bytes, somewhere in a file."""
    file = tmp_path / "table.safetensors"
    file.write_bytes(bytes(BEFORE) + bytes(i * 7 % 251 for i in range(700 * 32)) + bytes(50))
    return TensorMeta("embed.weight", "U8", (700, 32), file, BEFORE, BEFORE + 700 * 32)


def expected(stored: TensorMeta, begin: int, size: int) -> list[int]:
    return list(Path(stored.file).read_bytes()[BEFORE + begin : BEFORE + begin + size])


def held(stored: TensorMeta, intake: Intake, *answers: str | None) -> tuple[HostRows, Pinning]:
    device = Pinning(list(answers))
    intake.opened = device  # type: ignore[assignment]
    return host_rows(stored, 6400, 9000, intake), device


def test_a_cpu_reads_the_mapped_file(stored: TensorMeta, intake: Intake) -> None:
    for begin, size in ((0, 700 * 32), (320, 32), (10_000, 5)):
        rows = host_rows(stored, begin, size, intake)
        assert (rows.pinned, rows.data.dtype, rows.data.tolist()) == (False, torch.uint8, expected(stored, begin, size))
        assert str(stored.file) in rows.how


def test_nothing_is_read_or_copied_to_map(stored: TensorMeta, intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are the file's own: what is written to it afterwards is seen. Two loads share the mapping."""
    monkeypatch.setattr(Intake, "read", None)
    rows = host_rows(stored, 0, 700 * 32, intake)
    assert host_rows(stored, 0, 700 * 32, intake).data.data_ptr() == rows.data.data_ptr()
    with Path(stored.file).open("r+b") as file:
        file.seek(BEFORE + 5)
        file.write(b"\xfe")
    assert rows.data[5] == 0xFE


def test_the_mapping_is_pinned_by_whole_pages_once(stored: TensorMeta, intake: Intake) -> None:
    rows, device = held(stored, intake, None)
    ((address, size),) = device.asked
    assert address % mmap.PAGESIZE == 0
    assert address <= rows.data.data_ptr()
    assert rows.data.data_ptr() + len(rows.data) == address + size
    assert rows.pinned
    assert rows.data.tolist() == expected(stored, 6400, 9000)
    assert "2.5 us" in rows.how
    again, other = held(stored, intake)
    assert again.pinned
    assert other.asked == []


def test_what_cannot_be_pinned_is_copied_and_that_is_said(stored: TensorMeta, intake: Intake) -> None:
    rows, device = held(stored, intake, "cudaHostRegister: operation not supported", None)
    assert len({address for address, _ in device.asked}) == 2
    assert device.read_only == [True, False]  # the file's pages cannot be written to, those of the copy can
    assert rows.pinned
    assert rows.data.tolist() == expected(stored, 6400, 9000)
    assert "operation not supported" in rows.how
    assert "copied" in rows.how


def test_without_pinned_memory_the_cost_is_stated(stored: TensorMeta, intake: Intake) -> None:
    rows, _ = held(stored, intake, "not here", "nor there")
    assert not rows.pinned
    assert rows.data.tolist() == expected(stored, 6400, 9000)
    assert "not here; nor a copy of it: nor there" in rows.how
    assert "20 us" in rows.how


@pytest.mark.parametrize(("free", "said", "asked"), [(8000, "0.0 GiB of memory are free", 0), (17_000, "no room", 1)])
def test_too_little_memory_is_not_pinned(
    free: int, said: str, asked: int, stored: TensorMeta, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned pages are held in memory: what does not fit would push out everything else. A copy takes it twice."""
    monkeypatch.setattr(module, "free_memory", lambda: free)
    rows, device = held(stored, intake, "no room")
    assert (rows.pinned, len(device.asked)) == (False, asked)
    assert said in rows.how


def test_the_machine_says_what_is_free() -> None:
    assert 1 << 20 < module.free_memory() < 1 << 50


def test_a_shorter_file_and_a_missing_one_are_refused(stored: TensorMeta, intake: Intake) -> None:
    longer = stored._replace(end=stored.end + 4096)
    with pytest.raises(CheckpointError, match=r"embed\.weight.*truncated"):
        host_rows(longer, 0, longer.nbytes, intake)
    Path(stored.file).unlink()
    with pytest.raises(CheckpointError, match=r"embed\.weight.*No such file"):
        host_rows(stored, 0, 32, intake)


def test_other_devices_say_that_they_do_not_pin() -> None:
    assert Device("npu", 0, "hccl").reach_host(0, 4096, read_only=True) == "torch.npu is not known to pin it"
    assert CPU.reach_host(0, 4096, read_only=True) is None


def two_tensors(tmp_path: Path, rows: int) -> StoredWeight:
    """Codes [rows, 64] and scales [rows, 2] in one file."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(i % 100 for i in range(rows * 64)) + bytes(100 + i % 30 for i in range(rows * 2)))
    spec = TensorSpec("embed.weight", (rows, 64), Storage.TABLE, Split.PADDED_ROWS)
    codes = TensorMeta("embed.weight", "F8_E4M3", (rows, 64), file, 0, rows * 64)
    scales = TensorMeta("embed.scale", "F8_E8M0", (rows, 2), file, rows * 64, rows * 66)
    return StoredWeight(spec, codes, scales, FP8, (1, 32))


@pytest.mark.parametrize(("rank", "rows"), [(0, range(6)), (1, range(6, 11))])
def test_a_rank_maps_its_rows_of_a_table(tmp_path: Path, intake: Intake, rank: int, rows: range) -> None:
    """Of eleven rows on two ranks the last has five: a row of padding is in no whole table."""
    weight = two_tensors(tmp_path, 11)
    piece = RankSlice(weight.spec, ((6 * rank, 6 * rank + 6), (0, 64)))
    stored = StoredTensors({"embed.weight": weight}, {"embed.weight": piece}, intake, whole=True)
    table = stored.table("embed.weight")
    assert table.scales is not None
    assert (table.codes.dtype, table.scales.dtype) == (torch.float8_e4m3fn, torch.float8_e8m0fnu)
    assert table.codes.view(torch.uint8).tolist() == [[(row * 64 + i) % 100 for i in range(64)] for row in rows]
    assert table.scales.view(torch.uint8).tolist() == [[100 + (row * 2 + i) % 30 for i in range(2)] for row in rows]


@pytest.mark.parametrize(("total", "hosted"), [(703, True), (704, False)])
def test_a_table_goes_to_a_device_that_has_room(
    tmp_path: Path, intake: Intake, total: int, hosted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three quarters of it are for weights: of 16 rows on two ranks each holds 528 bytes of codes and scales."""
    weight = two_tensors(tmp_path, 16)
    piece = RankSlice(weight.spec, ((8, 16), (0, 64)))
    stored = StoredTensors({"embed.weight": weight}, {"embed.weight": piece}, intake, whole=True)
    intake.opened = Pinning([None, None])  # type: ignore[assignment]
    monkeypatch.setattr(Pinning, "memory", lambda self: (0, total), raising=False)
    intake.device = torch.device("meta")  # anything but a CPU; what is read stays where it was
    monkeypatch.setattr(Intake, "fetch_large", lambda self, meta, begin, size: self.read(meta, begin, size))
    monkeypatch.setattr(Intake, "read", lambda self, meta, begin, size: torch.full((size,), 7, dtype=torch.uint8))
    table = stored.table("embed.weight")
    assert ("mapped" in table.how) == hosted
    assert bool((table.codes.view(torch.uint8) == 7).all()) != hosted


@pytest.fixture
def big(tmp_path: Path) -> TensorMeta:
    """40,000 rows of 256 codes, 10 MB: more than one page, none a NaN."""
    codes = torch.randint(0, 120, (40_000, 256), dtype=torch.uint8)
    file = tmp_path / "table.safetensors"
    file.write_bytes(bytes(BEFORE) + codes.numpy().tobytes())
    return TensorMeta("embed.weight", "F8_E4M3", (40_000, 256), file, BEFORE, BEFORE + codes.numel())


def table(rows: HostRows) -> tuple[Any, ...]:
    codes = rows.data.view(torch.float8_e4m3fn).view(-1, 256)
    scales = torch.randint(118, 124, (len(codes), 8), dtype=torch.uint8).view(torch.float8_e8m0fnu)
    return codes, scales.pin_memory() if rows.pinned else scales, torch.randint(0, len(codes), (5, 24)), 0


@pytest.mark.gpu
@pytest.mark.parametrize("copied", [False, True])
def test_kernels_read_pinned_rows_through_the_pointer(
    copied: bool, big: TensorMeta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapped file's pages, and a copy of them; also recorded, as a step is."""
    from flagrelease.engine.kernels.triton_operators import TritonOperators

    device = open_device("cuda")
    if copied:
        monkeypatch.setattr(module, "_pinned_once", lambda mapped, device: "not tried")
    with Intake(device) as intake:
        rows = host_rows(big, 0, big.nbytes, intake)
    assert rows.pinned, rows.how
    assert rows.data.is_pinned()
    codes, scales, numbers, first = table(rows)
    expected, there = v41.engram_rows(codes, scales, numbers, first), numbers.to(device.torch_device)
    assert torch.equal(TritonOperators.engram_rows(codes, scales, there, first).cpu(), expected)
    results: list[torch.Tensor] = []
    replay = device.capture(lambda: results.append(TritonOperators.engram_rows(codes, scales, there, first)))
    replay()
    assert torch.equal(results[-1].cpu(), expected)


@pytest.mark.gpu
def test_a_refused_pinning_leaves_no_error_behind(big: TensorMeta) -> None:
    """The pages are pinned already: CUDA refuses them, and the next launch must not take that for its own failure."""
    device = open_device("cuda")
    with Intake(device) as intake:
        rows = host_rows(big, 0, big.nbytes, intake)
    address = rows.data.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    assert "cudaHostRegister" in str(device.reach_host(address, mmap.PAGESIZE, read_only=True))
    assert torch.ones(3, device="cuda").add_(1).sum().item() == 6


@pytest.mark.gpu
def test_rows_that_no_kernel_reaches_are_gathered_by_the_host(big: TensorMeta) -> None:
    from flagrelease.engine.kernels.triton_operators import TritonOperators

    with Intake(CPU) as intake:
        rows = host_rows(big, 0, big.nbytes, intake)
    codes, scales, numbers, first = table(rows)
    actual = TritonOperators.engram_rows(codes, scales, numbers.cuda(), first)
    assert actual.is_cuda
    assert torch.equal(actual.cpu(), v41.engram_rows(codes, scales, numbers, first))
