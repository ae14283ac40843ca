"""Which way a sum goes, and when ranks exchange at all: the same decision on every rank, whatever one of them lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

from flagrelease.device import Device, open_device
from flagrelease.engine import peers
from flagrelease.engine.control import open_control
from flagrelease.engine.kernels import exchange as exchange_module
from flagrelease.engine.kernels.exchange import Exchange
from flagrelease.engine.parallel import Groups

CAPACITY = 100


def groups_with_an_exchange(monkeypatch: pytest.MonkeyPatch) -> tuple[Groups, list[str]]:
    """Groups whose ways are written down: nothing is sent."""
    went: list[str] = []
    nothing = torch.zeros(0, dtype=torch.int64)
    exchange = Exchange(torch.zeros(2, 2, CAPACITY, dtype=torch.int64), nothing, nothing, 0, [])

    def small(parts: torch.Tensor, exchange: Exchange, dtype: torch.dtype) -> torch.Tensor:
        went.append("exchange")
        return parts[0].to(dtype)

    def large(x: torch.Tensor, group: object) -> torch.Tensor:
        went.append("backend")
        return x

    monkeypatch.setattr(exchange_module, "sum_over_ranks", small)
    monkeypatch.setattr("flagrelease.engine.parallel._sum", large)
    return Groups(2, 0, exchange=exchange), went


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_goes_by_its_size(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    groups, went = groups_with_an_exchange(monkeypatch)
    for shape in ((1, CAPACITY), (5, 2, 10), (1, CAPACITY + 1), (0, 8)):
        for collective in (groups.all_sum, groups.sum_output):
            x = torch.ones(shape, dtype=dtype)
            summed = collective(x)
            assert (summed.shape, summed.dtype) == (x.shape, dtype)
    assert went == ["exchange"] * 4 + ["backend"] * 4


def test_sums_of_some_ranks_are_the_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, went = groups_with_an_exchange(monkeypatch)
    replace(groups, mp=16, npg=2, o_mode="shared").sum_output(torch.ones(1, 4))
    assert went == ["backend"]


def test_an_exchange_refuses_more_than_there_is_room_for() -> None:
    exchange = Exchange(torch.zeros(2, 2, CAPACITY, dtype=torch.int64), torch.zeros(2), torch.zeros(1), 0, [])
    with pytest.raises(ValueError, match="an exchange takes 100 numbers"):
        exchange_module.require_room(torch.zeros(3, 1, CAPACITY + 1), exchange)


def opened(lacking: str) -> list[str]:
    """What each rank opens, and why not, where the second one lacks something. Devices and kernels are stand-ins."""
    control = open_control()
    assert control is not None
    rank = torch.distributed.get_rank()
    second = rank == 1
    device = replace(open_device("cpu"), index=0 if lacking == "a device of its own" else rank)
    device = replace(device, dist_backend="gloo" if lacking == "the backend" and second else "nccl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "_has_kernels", lambda: not (lacking == "kernels" and second))
        patch.setattr(Device, "reaches", lambda device, others: not (lacking == "the other's memory" and second))
        patch.setattr(peers, "_host", lambda: "other" if lacking == "the host" and second else "one")
        patch.setattr(peers, "_share", lambda *_: None if lacking == "shared memory" and second else "shared")
        patch.setattr(peers, "sums_are_right", lambda *_: not (lacking == "right sums" and second))
        exchange, why = peers.open_exchange(control, device)
    assert (exchange is None) == bool(why), "whoever does without is told why"
    return [each.decode() for each in peers.gather_bytes(control, f"{exchange} {why}".encode())]


REASONS = {
    "nothing": "shared ",
    "the backend": "None an exchange goes with NCCL",
    "kernels": "None its kernels are for NVIDIA's devices from Hopper on",
    "the other's memory": "None the devices do not reach each other's memory",
    "the host": "None the ranks are not on one host, or share a device",
    "a device of its own": "None the ranks are not on one host, or share a device",
    "shared memory": "None the driver does not share memory between processes",
    "right sums": "None a sum inside a kernel came out wrong",
}


def test_what_one_rank_lacks_no_rank_uses() -> None:
    assert on_ranks(2, every_lack) == {lack: [said, said] for lack, said in REASONS.items()}


def every_lack() -> dict[str, list[str]]:
    return {lack: opened(lack) for lack in REASONS}


def tried(folder: Path) -> list[bool]:
    """Trials of an exchange over mapped files: as it is, and with defects that would keep a step waiting for ever."""
    control = open_control()
    assert control is not None
    rank, results = torch.distributed.get_rank(), []
    for defect in ("none", "the second rank writes elsewhere", "the second rank takes another number"):
        size = 2 * 2 * peers._COLUMNS * 3
        paths = [str(folder / f"{defect} {r}") for r in range(2)]
        every = [torch.from_file(path, shared=True, size=size, dtype=torch.int64) for path in paths]
        addresses = torch.tensor([each.data_ptr() for each in every])
        ticket = torch.tensor([exchange_module.FIRST_TICKET])
        if rank == 1 and defect == "the second rank writes elsewhere":
            addresses = addresses[[1, 1]]
        if rank == 1 and defect == "the second rank takes another number":
            ticket += exchange_module.FIRST_TICKET
        exchange = Exchange(every[rank].view(2, 2, -1), addresses, ticket, rank, every)
        right = peers.sums_are_right(control, exchange, 10_000 if defect == "none" else 3)
        results.append(all(each == b"y" for each in peers.gather_bytes(control, b"y" if right else b"n")))
    return results


@pytest.mark.slow
def test_a_trial_sees_what_would_wait_for_ever(tmp_path: Path) -> None:
    assert on_ranks(2, tried, tmp_path) == [True, False, False]


def test_a_cpu_reaches_nobody() -> None:
    assert not open_device("cpu").reaches([1])


def sums_on_devices() -> tuple[int, bool]:
    """How many of many sums of two devices are not those in the order of ranks; whether captured ones are the same."""
    torch.cuda.set_device(torch.distributed.get_rank())
    device = open_device("cuda", torch.distributed.get_rank())
    control = open_control()
    assert control is not None
    exchange, why = peers.open_exchange(control, device)
    assert exchange is not None, why
    wrong = 0
    for n in range(100):
        shape = 3, (1, 7, 64)[n % 3], (4096, 100, 7000)[n % 3]
        generator = torch.Generator("cuda").manual_seed(n)
        every = [torch.randn(shape, generator=generator, device="cuda") * 1000.0**rank for rank in range(2)]
        sums = [part[0] + part[1] + part[2] for part in every]
        got = exchange_module.sum_over_ranks(every[exchange.rank], exchange, torch.float32)
        wrong += not torch.equal(got, sums[0] + sums[1])
    parts, out = torch.randn(2, 3, 4096, device="cuda"), torch.empty(3, 4096, device="cuda")
    replay = device.capture(lambda: out.copy_(exchange_module.sum_over_ranks(parts, exchange, torch.float32)) and None)
    results = []
    for _ in range(50):
        replay()
        results.append(out.clone())
    same = all(torch.equal(result, results[0]) for result in results)
    return wrong, same and bool(results[0].abs().sum() > 0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_sum_in_the_order_of_ranks() -> None:
    assert on_ranks(2, sums_on_devices, backend="nccl") == (0, True)
