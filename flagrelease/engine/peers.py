"""`open_exchange`: memory of every rank that the other ranks of the host write to, for small sums inside kernels.

NCCL's kernels are no part of a chain of kernels that start early, and take more time than the link does. Up to some
hundred thousand numbers the ranks of one host therefore add up by `kernels/exchange.py`, above that by the backend's
collectives. Where the ranks do not all reach each other's memory, or a trial at the start does not give the right sums
in time, the backend's do everything, and a run says why.
"""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist

from flagrelease.device import Device
from flagrelease.engine.control import gather_bytes

if TYPE_CHECKING:
    from flagrelease.engine.kernels.exchange import Exchange

# Numbers that an exchange can have between two ranks: 128 rows of 4,096. A number takes 8 bytes on the link and goes to
# every other rank, so that with more ranks the backend's collectives, which cut the sum, are as fast from fewer on.
_NUMBERS = 1 << 19
_MOST_RANKS = 8
_LOOKS = 1 << 20  # at another rank's memory, about a second: how long a trial waits
_ONE_LOOK = 16  # the least number that is compiled to the same kernel
_TRIALS = 40
_COLUMNS = 1000
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Opened(NamedTuple):
    """What sums over all ranks of a job go through; without it the backend's collectives do them, and `why` says so."""

    exchange: Exchange | None
    why: str


def open_exchange(control: dist.ProcessGroup, device: Device) -> Opened:
    """Open an exchange between all ranks of the job, and try it; the same decision on every rank.

    It needs NVIDIA's devices of one host that reach each other's memory, from Hopper on, NCCL, and at most 8 ranks.
    """
    ranks, kernels = dist.get_world_size(), _has_kernels()
    every = [json.loads(each) for each in gather_bytes(control, json.dumps([_host(), device.index]).encode())]
    others = [index for host, index in every if [host, index] != [_host(), device.index]]
    lacks = {
        f"an exchange is for 2 to {_MOST_RANKS} ranks": not 2 <= ranks <= _MOST_RANKS,
        "an exchange goes with NCCL": device.dist_backend != "nccl",
        "its kernels are for NVIDIA's devices from Hopper on": not kernels,
        "the ranks are not on one host, or share a device": len({h for h, _ in every}) > 1 or len(others) < ranks - 1,
        "the devices do not reach each other's memory": not device.reaches(others),
    }
    why = _first(control, next((lack for lack, is_so in lacks.items() if is_so), ""))
    if why:
        return Opened(None, why)
    exchange = _share(control, device, ranks)
    why = _first(control, "" if exchange is not None else "the driver does not share memory between processes")
    if exchange is None or why:
        return Opened(None, why)
    why = _first(control, "" if sums_are_right(control, exchange, _LOOKS) else "a sum inside a kernel came out wrong")
    return Opened(None if why else exchange, why)


def sums_are_right(control: dist.ProcessGroup, exchange: Exchange, looks: int) -> bool:
    """Whether this rank gets the right sums of known numbers, when each is waited for for so many `looks` at most."""
    from flagrelease.engine.kernels.exchange import sum_over_ranks

    place, right = exchange.memory.device, True
    columns = torch.arange(_COLUMNS, dtype=torch.float32, device=place)
    weight = exchange.ranks * (exchange.ranks + 1) // 2
    for n in range(_TRIALS):
        own = (columns + n).repeat(1 + n % 3, 1)[None] * (exchange.rank + 1)
        gather_bytes(control, b".")  # ranks begin a trial together
        # The first one is compiled and loaded, which takes each rank another time: it neither waits nor counts.
        got = sum_over_ranks(own, exchange, torch.float32, looks if n else _ONE_LOOK)
        right = right and (n == 0 or torch.equal(got, own[0] / (exchange.rank + 1) * weight))  # integers: exact
    return right


def _has_kernels() -> bool:
    """Whether the kernels of an exchange are for this device: they were tried where kernels start early."""
    if any(importlib.util.find_spec(name) is None for name in ("triton", "torch.distributed._symmetric_memory")):
        return False
    from flagrelease.engine.kernels.early_launch import EARLY

    return bool(EARLY.value)


def _host() -> str:
    """What ranks of one running machine have in common, also in containers of it, and no others."""
    return f"{socket.gethostname()} {_BOOT.read_text().strip() if _BOOT.exists() else ''}"


def _first(control: dist.ProcessGroup, own: str) -> str:
    """The first rank's reason that has one, on every rank; empty if none has."""
    every = [json.loads(each) for each in gather_bytes(control, json.dumps(own).encode())]
    return next((reason for reason in every if reason), "")


def _share(control: dist.ProcessGroup, device: Device, ranks: int) -> Exchange | None:
    """Memory of zeros that all ranks have mapped; None if this rank cannot."""
    import torch.distributed._symmetric_memory as symmetric

    from flagrelease.engine.kernels.exchange import FIRST_TICKET, Exchange

    place, world = torch.device(device.torch_device), dist.group.WORLD
    assert world is not None
    shape = 2, ranks, _NUMBERS // (ranks - 1)
    memory = symmetric.empty(*shape, dtype=torch.int64, device=place)
    memory.zero_()
    device.synchronize()
    try:
        handle = symmetric.rendezvous(memory, world)
        views = [handle.get_buffer(rank, shape, torch.int64) for rank in range(ranks)]
    except RuntimeError:
        return None
    addresses = torch.tensor([view.data_ptr() for view in views], dtype=torch.int64, device=place)
    ticket = torch.tensor([FIRST_TICKET], dtype=torch.int64, device=place)
    return Exchange(memory, addresses, ticket, dist.get_rank(), views)
