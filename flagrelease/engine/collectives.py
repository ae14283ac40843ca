"""The collectives of torch.distributed that ranks call, and the dtypes that each is given: backends differ in both.

Nothing else calls them. What is not in `SENT` is refused before it is sent: gloo refuses FP8, HCCL and MCCL know E4M3
in some versions and E8M0 in none, and FlagCX takes FP8 for bytes, so that a sum would add codes as integers. Quantised
weights and scales therefore go as `bytes_of` them, and sums are of BF16 or FP32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from flagrelease.ranks.lifetime import LostRankError

_SUMS = (torch.bfloat16, torch.float32)
# Of the group that a backend of devices makes. Outputs of attention and logits are gathered as they are.
SENT = {
    "all_reduce": _SUMS,
    "reduce_scatter": _SUMS,
    "all_gather": (*_SUMS, torch.uint8),
    "all_gather_single": (torch.uint8,),
    "broadcast": (torch.int64,),
}
# Of the control group, whose backend is always gloo on the CPU.
TOLD = {"all_gather": (torch.int64, torch.uint8), "broadcast": (torch.uint8,)}

_BROKEN = "gloo/transport"  # part of every message of gloo about a connection
# Torch 2.13 has renamed them, and warns of the older names.
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_reduce(x: Tensor, group: dist.ProcessGroup) -> None:
    """Overwrite `x` with the sum over the group."""
    _checked("all_reduce", x, lambda: dist.all_reduce(x, group=group))


def reduce_scatter(own: Tensor, x: Tensor, group: dist.ProcessGroup | None) -> None:
    """Sum x [N, ..] over the group; `own` [N / ranks, ..] gets this rank's rows."""
    _checked("reduce_scatter", x, lambda: _reduce_scatter_single(own, x, group=group))


def all_gather(parts: list[Tensor], x: Tensor, group: dist.ProcessGroup) -> None:
    """Fill `parts` with every rank's `x`, all of one shape."""
    _checked("all_gather", x, lambda: dist.all_gather(parts, x, group=group))


def all_gather_single(whole: Tensor, x: Tensor, group: dist.ProcessGroup | None) -> None:
    """Fill `whole` [N * ranks, ..] with every rank's x [N, ..]."""
    _checked("all_gather_single", x, lambda: _gather_single(whole, x, group=group))


def broadcast(x: Tensor, group: dist.ProcessGroup) -> None:
    """Overwrite `x` with the first rank's."""
    _checked("broadcast", x, lambda: dist.broadcast(x, group_src=0, group=group))


def bytes_of(x: Tensor) -> Tensor:
    """The bytes of x, for a backend that does not know every dtype."""
    return x.view(torch.uint8)


def _checked(name: str, x: Tensor, collective: Callable[[], object]) -> None:
    if x.dtype not in (*SENT[name], *TOLD.get(name, ())):
        raise TypeError(f"{name} of {x.dtype}: not every backend takes it, and nothing of the engine sends it so")
    try:
        collective()
    except RuntimeError as error:
        raise_if_lost(error)
        raise


def raise_if_lost(error: RuntimeError) -> None:
    """Say in our words what torch says when a collective fails because another rank has ended.

    Raises:
        LostRankError: that is what `error` means.
    """
    if isinstance(error, dist.DistError) or _BROKEN in str(error):
        raise LostRankError from error
