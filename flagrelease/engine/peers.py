"""`open_exchange`: memory of every rank that the other ranks of the host write to, for small sums inside kernels.

NCCL's kernels are no part of a chain of kernels that start early, and take more time than the link does. Up to some
hundred thousand numbers the ranks of one host therefore add up by `kernels/exchange.py`, above that by the backend's
collectives. Where the ranks do not all reach each other's memory, the backend's do everything.
"""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

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
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def open_exchange(control: dist.ProcessGroup, device: Device) -> Exchange | None:
    """What sums over all ranks of the job go through, the same choice on every rank; None: the backend's collectives.

    It needs NVIDIA's devices of one host that reach each other's memory, from Hopper on, NCCL, and at most 8 ranks.
    """
    ranks = dist.get_world_size()
    able = 2 <= ranks <= _MOST_RANKS and device.dist_backend == "nccl" and _has_kernels()
    every = [json.loads(each) for each in gather_bytes(control, json.dumps([_host(), device.index]).encode())]
    others = [index for host, index in every if [host, index] != [_host(), device.index]]
    beside = len({host for host, _ in every}) == 1 and len(others) == ranks - 1
    if not _all_agree(control, able and beside and device.reaches(others)):
        return None
    return _open(control, device, ranks)


def _has_kernels() -> bool:
    """Whether the kernels of an exchange are for this device: they were tried where kernels start early."""
    if any(importlib.util.find_spec(name) is None for name in ("triton", "torch.distributed._symmetric_memory")):
        return False
    from flagrelease.engine.kernels.early_launch import EARLY

    return bool(EARLY.value)


def _host() -> str:
    """What ranks of one running machine have in common, also in containers of it, and no others."""
    return f"{socket.gethostname()} {_BOOT.read_text().strip() if _BOOT.exists() else ''}"


def _all_agree(control: dist.ProcessGroup, own: bool) -> bool:
    return all(each == b"yes" for each in gather_bytes(control, b"yes" if own else b"no"))


def _open(control: dist.ProcessGroup, device: Device, ranks: int) -> Exchange | None:
    import torch.distributed._symmetric_memory as symmetric

    from flagrelease.engine.kernels.exchange import FIRST_TICKET, Exchange

    rank, place, world = dist.get_rank(), torch.device(device.torch_device), dist.group.WORLD
    assert world is not None
    shape = 2, ranks, _NUMBERS // (ranks - 1)
    memory = symmetric.empty(*shape, dtype=torch.int64, device=place)
    try:
        handle = symmetric.rendezvous(memory, world)
        views = [handle.get_buffer(other, shape, torch.int64) for other in range(ranks)]
    except RuntimeError:  # the driver does not share memory between processes; the others fail here as well
        return None
    memory.fill_(rank + 1)
    device.synchronize()
    _all_agree(control, True)
    seen = [int(view[1, -1, -1]) for view in views] == [other + 1 for other in range(ranks)]
    if not _all_agree(control, seen):
        return None
    memory.zero_()
    device.synchronize()
    _all_agree(control, True)
    addresses = torch.tensor([view.data_ptr() for view in views], dtype=torch.int64, device=place)
    ticket = torch.tensor([FIRST_TICKET], dtype=torch.int64, device=place)
    return Exchange(memory, addresses, ticket, rank, views)
