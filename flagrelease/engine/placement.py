"""Which part of each tensor a rank holds: the sharding rules of DeepSeek's convert.py, and FlagOS' for o-groups.

The converter has its own statement of these rules; the two meet in a loaded release, whose shapes must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flagrelease.engine.parallel import check_ranks
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import family_of
from flagrelease.model.tensors import Split, TensorSpec
from flagrelease.records.manifest import OGroups

Range = tuple[int, int]  # begin, end


@dataclass(frozen=True, slots=True)
class RankSlice:
    """The part of a logical tensor that a rank holds: one range for each dimension."""

    spec: TensorSpec
    ranges: tuple[Range, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the part."""
        return tuple(end - begin for begin, end in self.ranges)


def local_pieces(config: FamilyConfig, mp: int, rank: int, o_mode: OGroups | None) -> dict[str, RankSlice]:
    """What rank `rank` of `mp` holds, by name, without scales. `o_mode` matters only if mp > o_groups.

    Raises:
        UsageError: the model cannot be cut over `mp` ranks.
    """
    check_ranks(config, mp)
    return {piece.spec.name: piece for piece in _pieces(config, mp, rank, o_mode)}


def _pieces(config: FamilyConfig, mp: int, rank: int, o_mode: OGroups | None) -> Iterator[RankSlice]:
    for spec in family_of(config).inventory(config).values():
        ranges = [(0, size) for size in spec.shape]
        if spec.split is Split.EXPERT and spec.expert is not None and spec.expert // (spec.experts // mp) != rank:
            continue
        if spec.split is Split.ROWS:
            ranges[0] = _nth(spec.shape[0], mp, rank)
        elif spec.split is Split.PADDED_ROWS:
            ranges[0] = _nth(-(-spec.shape[0] // mp) * mp, mp, rank)  # the last ranks' end lies behind the tensor
        elif spec.split in (Split.O_GROUP_ROWS, Split.O_GROUP_COLUMNS):
            ranges = _o_group(spec, mp, rank, config.o_groups, o_mode)
        yield RankSlice(spec, tuple(ranges))


def _o_group(spec: TensorSpec, mp: int, rank: int, o_groups: int, o_mode: OGroups | None) -> list[Range]:
    npg = max(1, mp // o_groups)
    rows, columns = spec.shape
    if spec.split is Split.O_GROUP_ROWS:  # wo_a: whole o-groups; `split` keeps the inputs of the rank's own heads
        own = _nth(columns, npg, rank % npg) if o_mode == "split" else (0, columns)
        return [_nth(rows, mp // npg, rank // npg), own]
    parts, place = (mp, rank) if o_mode == "split" else (mp // npg, rank // npg)
    return [(0, rows), _nth(columns, parts, place)]


def _nth(size: int, parts: int, place: int) -> Range:
    return place * (size // parts), (place + 1) * (size // parts)
