"""Process groups of tensor parallelism: which ranks add up what, by which means, and which share an o-group.

A rank is one process with one device; all ranks run the same program on the same tokens. With mp > o_groups, npg =
mp / o_groups consecutive ranks share one o-group (the pair group). They either hold the same piece of it (`shared`:
heads are gathered inside the pair, and the sum runs over one rank of each pair) or each a part of it (`split`: the sum
runs inside the pair, then over all ranks).

Every sum gives all of its ranks the same bits: either one rank adds each number and tells the others (NCCL, gloo), or
all add them in the order of ranks (`kernels/exchange.py`). So what follows, sampling included, is the same on all.

Of a step of many tokens each rank keeps the streams of its share (`spread`): mHC, norms and the shared expert, which
would be the same work on every rank, are divided, and a sum goes only where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine import collectives
from flagrelease.engine.collectives import bytes_of
from flagrelease.engine.control import broadcast_bytes, open_control
from flagrelease.engine.peers import Opened, open_exchange
from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.config import FamilyConfig
from flagrelease.ranks.job import ranks
from flagrelease.records.manifest import OGroups

if TYPE_CHECKING:
    from flagrelease.engine.kernels.exchange import Exchange

T = TypeVar("T", None, bool, int, str)
SPREAD = 2048  # tokens of a step from which on they are shared out: more than captured passes have


@dataclass(frozen=True, slots=True)
class Groups:
    """This rank's place. A group of None has one member: its collectives are the identity.

    Attributes:
        mp: ranks of the model.
        rank: this one.
        npg: ranks that share an o-group (1 if mp <= o_groups).
        o_mode: how they share it; None if npg is 1.
        world: all ranks.
        pair: the npg ranks of this rank's o-group.
        projection: one rank of each pair group, this rank's place in it.
        control: all ranks, on the CPU, for what they tell each other.
        exchange: the way of small sums over all ranks; None: they go the way of large ones.
        no_exchange: why there is none; empty if none was asked for.
        is_spread: whether the tokens of a step are shared out: what sums of tokens give is this rank's share.
    """

    mp: int
    rank: int
    npg: int = 1
    o_mode: OGroups | None = None
    world: dist.ProcessGroup | None = None
    pair: dist.ProcessGroup | None = None
    projection: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    exchange: Exchange | None = None
    no_exchange: str = ""
    is_spread: bool = False

    @property
    def is_leader(self) -> bool:
        """Whether this rank talks to the user: reads requests, samples, writes files."""
        return self.rank == 0

    def spread(self, tokens: int) -> Groups:
        """These groups for a step of so many tokens, which are shared out if they are many and can be divided."""
        spread = self.world is not None and self.o_mode is None and tokens >= SPREAD and tokens % self.mp == 0
        return replace(self, is_spread=True) if spread else self

    def own(self, x: Tensor) -> Tensor:
        """This rank's share of x [T, ..], consecutive rows; all of x if the step is not spread."""
        return x.chunk(self.mp)[self.rank] if self.is_spread else x

    def together(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """All ranks' shares of tokens, [T / mp, ..] each, as `shape`; x itself if the step is not spread."""
        if not self.is_spread:
            return x
        whole = x.new_empty(len(x) * self.mp, *x.shape[1:])
        collectives.all_gather_single(bytes_of(whole), bytes_of(x.contiguous()), self.world)
        return whole.view(*shape)

    def sum_tokens(self, x: Tensor) -> Tensor:
        """Sum over all ranks of x [.., N]; of a spread step this rank's share, [T / mp, N]."""
        if not self.is_spread:
            return self.all_sum(x)
        x = x.flatten(0, -2).contiguous()
        own = torch.empty_like(self.own(x), memory_format=torch.contiguous_format)
        collectives.reduce_scatter(own, x, self.world)
        return own

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum over all ranks, [.., N] in x's dtype."""
        if not self.exchanges(x):
            return _sum(x, self.world)
        from flagrelease.engine.kernels.exchange import sum_over_ranks

        assert self.exchange is not None
        return sum_over_ranks(x.reshape(1, -1, x.shape[-1]), self.exchange, x.dtype).view(x.shape)

    def exchanges(self, x: Tensor) -> bool:
        """Whether a sum of x goes the way of small ones. That follows from its size, the same on every rank."""
        return self.exchange is not None and 0 < x.numel() <= self.exchange.capacity

    def share(self, x: Tensor) -> None:
        """Overwrite `x` with the leader's, on every rank, behind what is queued on the device."""
        if self.world is not None:
            collectives.broadcast(x, self.world)

    def gather_vocab(self, x: Tensor) -> Tensor:
        """Concatenate [.., V / mp] of all ranks to [.., V]."""
        return x if self.world is None else _gather(x, self.world, self.mp)

    def gather_rows(self, x: Tensor) -> Tensor:
        """Concatenate [N / mp, ..] of all ranks to [N, ..], any dtype; for weights, when they are loaded."""
        if self.world is None:
            return x
        own = bytes_of(x.contiguous())
        parts = [torch.empty_like(own) for _ in range(self.mp)]
        collectives.all_gather(parts, own, self.world)
        return torch.cat(parts).view(x.dtype)

    def gather_heads(self, o: Tensor) -> Tensor:
        """`shared`: attention outputs [.., heads, HD] of the pair concatenated to the whole o-group's heads."""
        if self.o_mode != "shared" or self.pair is None:
            return o
        return _gather(o.flatten(-2), self.pair, self.npg).view(*o.shape[:-2], -1, o.shape[-1])

    def sum_o_lora(self, y: Tensor) -> Tensor:
        """`split`: partial sums [.., OR] added inside the pair; this rank keeps its 1/npg of the columns."""
        if self.o_mode != "split" or self.pair is None:
            return y
        width = y.shape[-1] // self.npg
        return _sum(y, self.pair).narrow(-1, self.rank % self.npg * width, width)

    def sum_output(self, x: Tensor) -> Tensor:
        """Partial sums of the output projection added over the ranks that hold different columns of wo_b.

        Of a spread step this rank's share, as `sum_tokens`.
        """
        return _sum(x, self.projection) if self.o_mode == "shared" else self.sum_tokens(x)

    def tell(self, message: bytes) -> None:
        """On the leader: send `message` to the other ranks, each of which must call `hear`."""
        if self.control is not None:
            broadcast_bytes(self.control, message)

    def hear(self) -> bytes:
        """On the other ranks: wait for what the leader tells."""
        assert self.control is not None, "a rank alone leads"
        return broadcast_bytes(self.control)

    def from_leader(self, value: T) -> T:
        """The leader's `value` on every rank."""
        if self.control is None:
            return value
        told: T = json.loads(broadcast_bytes(self.control, json.dumps(value).encode()))
        return told


def alone() -> Groups:
    """One process that holds the whole model."""
    return Groups(mp=1, rank=0)


def join_groups(
    config: FamilyConfig, o_mode: OGroups, control: dist.ProcessGroup | None = None, device: Device | None = None
) -> Groups:
    """The groups of this process in an initialised torch.distributed job whose ranks all serve one model.

    Args:
        config: of the model.
        o_mode: used if the job has more ranks than the model has o-groups.
        control: the group of all ranks on the CPU, if there is one already.
        device: this rank's, if its memory may take part in small sums.

    Raises:
        UsageError: the model cannot be cut over that many ranks.
    """
    mp, rank = dist.get_world_size(), dist.get_rank()
    check_ranks(config, mp)
    control = control or open_control()
    exchange, why = Opened(None, "") if device is None or control is None else open_exchange(control, device)
    if mp <= config.o_groups:
        return Groups(mp, rank, world=dist.group.WORLD, control=control, exchange=exchange, no_exchange=why)
    npg = mp // config.o_groups
    pairs = [list(range(k * npg, (k + 1) * npg)) for k in range(config.o_groups)]
    pair = _own_group(pairs, rank)
    projection = _own_group([list(ranks) for ranks in zip(*pairs, strict=True)], rank)
    return Groups(mp, rank, npg, o_mode, dist.group.WORLD, pair, projection, control, exchange, why)


def check_ranks(config: FamilyConfig, mp: int) -> None:
    """Refuse a number of ranks that does not divide what is cut.

    Raises:
        UsageError: names the number that is not divided.
    """
    cut = {
        "num_attention_heads": config.num_attention_heads,
        "index_n_heads": config.index_n_heads,
        **config.expert_counts,
        "vocab_size": config.vocab_size,
    }
    for name, size in cut.items():
        if size % mp:
            raise UsageError(f"{mp} ranks do not divide {name} {size}")
    if mp > config.most_ranks:
        raise UsageError(f"{mp} ranks: inference code of this model has at most {config.most_ranks}")
    if config.o_groups % mp and mp % config.o_groups:
        raise UsageError(f"{mp} ranks and {config.o_groups} o_groups: one must divide the other")


def _own_group(groups: list[list[int]], rank: int) -> dist.ProcessGroup:
    """Of these groups the one with this rank; every rank takes part in making each of them."""
    made: list[dist.ProcessGroup] = [dist.new_group(ranks) for ranks in groups]
    return next(group for group, ranks in zip(made, groups, strict=True) if rank in ranks)


def _sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        x = x.contiguous()
        collectives.all_reduce(x, group)
    return x


def _gather(x: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size)]
    collectives.all_gather(parts, x.contiguous(), group)
    return torch.cat(parts, dim=-1)


def start_job(device: Device) -> None:
    """Join the job that the environment describes (set by torchrun or ranks/launch.py), if there is one, once.

    Raises:
        ResourceError: this torch has no such backend as the chip table names for the device.
    """
    if ranks() > 1 and not dist.is_initialized():
        if not dist.is_backend_available(device.dist_backend):
            raise ResourceError(
                f"device {device.type!r}: torch.distributed has no backend {device.dist_backend!r} here, by which its "
                "ranks talk; it comes with the vendor's torch or with the module that brings the device"
            )
        device.set_current()
        dist.init_process_group(device.dist_backend)


def leave_job() -> None:
    """Leave it, if this process has joined one; waits for ever while a captured step holds collectives."""
    if dist.is_initialized():
        dist.destroy_process_group()
