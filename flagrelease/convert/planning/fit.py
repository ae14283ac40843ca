"""Does a release fit its chip and its hub? Sizes from headers, before any work."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flagrelease.convert.planning.layouts import TensorParallel, divisibility_problem
from flagrelease.convert.planning.parts import cut, parts_of, require_whole_blocks
from flagrelease.convert.planning.plan import ReleasePlan
from flagrelease.convert.planning.target import Target
from flagrelease.errors import UsageError
from flagrelease.model.config import FamilyConfig
from flagrelease.model.stored import StoredWeight
from flagrelease.publish.hubs.registry import file_limits
from flagrelease.source.source import Source

# Kept free on a card beside the weights: activations, caches of a short context, the runtime itself.
RESERVE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class CardFit:
    """Weights of one card against its memory. `smallest_mp` is the fewest ranks that fit, None if none do."""

    weights: int
    memory: int
    smallest_mp: int | None

    @property
    def fits(self) -> bool:
        """Whether the weights leave the reserve free."""
        return self.weights + RESERVE_BYTES <= self.memory


def card_fit(source: Source, target: Target, memory: int) -> CardFit:
    """How the ranks of an mp release (for the hf layout: the whole model on one card) fit cards of `memory` bytes."""
    return card_fits(source, target, (memory,))[0]


def card_fits(source: Source, target: Target, memories: Iterable[int]) -> list[CardFit]:
    """`card_fit` for several kinds of cards, from one look at the source."""
    source = target.held(source)
    tensors = _alike(source)
    weights = _rank_bytes(tensors, source.config, replace(target, mp=target.mp or 1))
    by_mp = _bytes_by_mp(tensors, source.config, target)
    return [CardFit(weights, memory, _smallest(by_mp, memory)) for memory in memories]


def smallest_mp(source: Source, target: Target, memory: int) -> int | None:
    """The fewest ranks, a power of two, whose weights fit cards of `memory` bytes."""
    source = target.held(source)
    return _smallest(_bytes_by_mp(_alike(source), source.config, target), memory)


def rank_bytes(source: Source, target: Target) -> int:
    """Bytes of the tensors of one rank (all ranks hold the same).

    Raises:
        UsageError: the target would cut a block.
    """
    source = target.held(source)
    return _rank_bytes(_alike(source), source.config, target)


def _alike(source: Source) -> list[tuple[StoredWeight, int]]:
    """One tensor of each kind that a cut could treat differently, and how many there are: a thousand, not 145,000."""
    found: dict[object, tuple[StoredWeight, int]] = {}
    for tensor in source.tensors:
        spec, scale = tensor.spec, tensor.scale
        kind = (
            spec.split,
            spec.expert,
            spec.experts,
            spec.shape,
            tensor.weight.dtype,
            scale and (scale.dtype, scale.shape),
        )
        example, count = found.get(kind, (tensor, 0))
        found[kind] = example, count + 1
    return list(found.values())


def _smallest(bytes_by_mp: dict[int, int], memory: int) -> int | None:
    return next((mp for mp, weights in bytes_by_mp.items() if weights + RESERVE_BYTES <= memory), None)


def _bytes_by_mp(tensors: list[tuple[StoredWeight, int]], config: FamilyConfig, target: Target) -> dict[int, int]:
    """Bytes of a rank for every power of two that the model can be cut into, ascending."""
    found = {}
    mp = 1
    while mp <= config.num_attention_heads:
        if divisibility_problem(config, mp) is None:
            with suppress(UsageError):  # this many ranks would cut a block
                found[mp] = _rank_bytes(tensors, config, replace(target, mp=mp))
        mp *= 2
    return found


def _rank_bytes(tensors: list[tuple[StoredWeight, int]], config: FamilyConfig, target: Target) -> int:
    assert target.mp is not None
    layout = TensorParallel(config, target.mp, target.o_groups)
    total = 0
    for tensor, count in tensors:
        rank, region = layout.regions(tensor.spec)[0]
        if rank != 0:  # an expert of another rank
            continue
        for part in parts_of(tensor, target.action(tensor), target):
            require_whole_blocks(part, region, tensor.spec, target)
            total += count * cut(part, region).nbytes
    return total


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder` is on, or will be on once it exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def hub_problems(release: ReleasePlan, hubs: tuple[str, ...]) -> list[str]:
    """Which of `hubs` cannot hold which file of a release, as sentences."""
    limits = file_limits()
    key = "max_file_bytes" if release.layout is None else "rank_part_bytes"
    return [
        f"{release.target.folder}/{file.name}: {file.size:,} bytes; {hub} takes files of at most "
        f"{limits[hub]:,} (set convert.{key} in the recipe)"
        for hub in hubs
        for file in release.files
        if file.size > limits[hub]
    ]
