"""`Job`: one visit to one source tensor, and the order of all visits.

The jobs are one global order of which every file's own order is a part; so a file can be written front to back whatever
else is written beside it. Tensors of the usual alignment of a release are visited at their place in the source, so that
releases share the visit. The wider ones, which stand at a file's beginning, are visited when the file is begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flagrelease.convert.planning.files import OutputFile
from flagrelease.convert.planning.parts import Cut
from flagrelease.convert.planning.slices import Slice
from flagrelease.convert.planning.target import Action
from flagrelease.model.v4.stored import StoredWeight

# Place of a visit in the order of work: (place in the source, 0 if it is for a file's beginning, minus the alignment),
# then the tensor's own place in the source.
_Key = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a part, and where it goes: index into `Plan.files`, offset in that file."""

    file: int
    begin: int
    cut: Cut

    @property
    def end(self) -> int:
        """Offset behind its last byte."""
        return self.begin + self.cut.nbytes


@dataclass(frozen=True, slots=True)
class Product:
    """What one action makes of a tensor, every place it goes to, and the releases (of the plan) these belong to."""

    action: Action
    weight: tuple[Piece, ...]
    scale: tuple[Piece, ...]
    releases: frozenset[int]


@dataclass(frozen=True, slots=True)
class Job:
    """One visit to one source tensor."""

    tensor: StoredWeight
    products: tuple[Product, ...]


def make_jobs(
    tensors: Sequence[StoredWeight], files: Sequence[OutputFile], actions: Sequence[Sequence[Action]]
) -> tuple[Job, ...]:
    """All visits, in order.

    Args:
        tensors: the source's.
        files: of all releases.
        actions: for each release what it makes of each tensor.
    """
    placed: dict[_Key, dict[Action, tuple[list[Piece], list[Piece]]]] = {}
    for number, file in enumerate(files):
        position = len(file.header)
        for key, one in _visits(file):
            action = actions[file.release][one.order]
            weight, scale = placed.setdefault(key, {}).setdefault(action, ([], []))
            (scale if one.part.is_scale else weight).append(Piece(number, position, one.cut))
            position += one.nbytes
    return tuple(
        Job(
            tensors[key[-1]],
            tuple(
                Product(action, tuple(weight), tuple(scale), frozenset(files[piece.file].release for piece in weight))
                for action, (weight, scale) in by_action.items()
            ),
        )
        for key, by_action in sorted(placed.items(), key=lambda item: item[0])
    )


def bytes_visited(tensors: Sequence[StoredWeight], files: Sequence[OutputFile]) -> int:
    """Bytes of the source that the jobs read. A tensor that stands in several places of the order is read again."""
    shared = {one.order for file in files for one in file.slices[file.ahead :]}
    ahead = {key for file in files for key, _ in _visits(file, file.ahead)}
    return sum(_bytes(tensors[order]) for order in shared) + sum(_bytes(tensors[key[-1]]) for key in ahead)


def _visits(file: OutputFile, count: int | None = None) -> Iterator[tuple[_Key, Slice]]:
    for number, one in enumerate(file.slices[:count]):
        if number < file.ahead:
            yield (file.first, 0, -one.alignment, one.order), one
        else:
            yield (one.order, 1, 0, one.order), one


def _bytes(tensor: StoredWeight) -> int:
    return tensor.weight.nbytes + (tensor.scale.nbytes if tensor.scale else 0)
