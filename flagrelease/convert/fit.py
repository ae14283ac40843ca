"""Does a release fit its chip and its hub? Sizes from headers, before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flagrelease.convert.layouts import TensorParallel, divisibility_problem
from flagrelease.convert.parts import cut, parts_of, require_whole_blocks
from flagrelease.convert.plan import ReleasePlan
from flagrelease.convert.target import Target
from flagrelease.errors import UsageError
from flagrelease.publish.hubs.hub import HUB_FILE_LIMITS
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
    weights = rank_bytes(source, replace(target, mp=target.mp or 1))
    return CardFit(weights, memory, smallest_mp(source, target, memory))


def smallest_mp(source: Source, target: Target, memory: int) -> int | None:
    """The fewest ranks, a power of two, whose weights fit cards of `memory` bytes."""
    mp = 1
    while mp <= source.config.num_attention_heads:
        if divisibility_problem(source.config, mp) is None:
            try:
                if rank_bytes(source, replace(target, mp=mp)) + RESERVE_BYTES <= memory:
                    return mp
            except UsageError:  # this mp would cut a block
                pass
        mp *= 2
    return None


def rank_bytes(source: Source, target: Target) -> int:
    """Bytes of the tensors of one rank (all ranks hold the same).

    Raises:
        UsageError: the target would cut a block.
    """
    assert target.mp is not None
    layout = TensorParallel(source.config, target.mp, target.o_groups)
    total = 0
    for tensor in source.tensors:
        rank, region = layout.regions(tensor.spec)[0]
        if rank != 0:  # an expert of another rank
            continue
        for part in parts_of(tensor, target.action(tensor), target):
            require_whole_blocks(part, region, tensor.spec, target)
            total += cut(part, region).nbytes
    return total


def hub_problems(release: ReleasePlan, hubs: tuple[str, ...]) -> list[str]:
    """Which of `hubs` cannot hold which file of a release, as sentences."""
    key = "max_file_bytes" if release.layout is None else "rank_part_bytes"
    return [
        f"{release.target.folder}/{file.name}: {file.size:,} bytes; {hub} takes files of at most "
        f"{HUB_FILE_LIMITS[hub]:,} (set convert.{key} in the recipe)"
        for hub in hubs
        for file in release.files
        if file.size > HUB_FILE_LIMITS[hub]
    ]
