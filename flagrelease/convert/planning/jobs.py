"""`Job`: one visit to one source tensor, and the order of all visits.

The jobs are one global order of which every file's own order is a part; so a file can be written front to back whatever
else is written beside it. Tensors of the usual alignment of a release are visited at their place in the source, so that
releases share the visit. The wider ones, which stand at a file's beginning, are visited when the file is begun, and
those at its end when all others have been.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from flagrelease.convert.planning.files import OutputFile
from flagrelease.convert.planning.parts import Cut, Role
from flagrelease.convert.planning.slices import Slice
from flagrelease.convert.planning.target import Action
from flagrelease.model.stored import StoredWeight

# Place of a visit in the order of work: place in the source; 0 if it is for a file's beginning, 2 for its end; minus
# the alignment; then the tensor's own place in the source.
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
    """What one action makes of a tensor: every place each part goes to, and the releases (of the plan) of these, but
    for those in which another machine records the tensor."""

    action: Action
    pieces: dict[Role, tuple[Piece, ...]]
    releases: frozenset[int]


@dataclass(frozen=True, slots=True)
class Job:
    """One visit to one source tensor.

    Attributes:
        rows: of the stored weight, half-open, where only these are read, because another machine records the tensor;
            None: all are read, and what is learned of the tensor is recorded.
    """

    tensor: StoredWeight
    products: tuple[Product, ...]
    rows: tuple[int, int] | None = None

    @property
    def bytes_to_read(self) -> int:
        """Of the source: the rows, from the beginning of a block on, and the whole scale."""
        weight, scale = self.tensor.weight, self.tensor.scale
        beside = scale.nbytes if scale else 0
        if self.rows is None:
            return weight.nbytes + beside
        first = self.rows[0] - self.rows[0] % self.tensor.block[0]
        row_bytes = weight.nbytes // weight.shape[0] if weight.shape else weight.nbytes
        return row_bytes * (self.rows[1] - first) + beside


def make_jobs(
    tensors: Sequence[StoredWeight],
    files: Sequence[OutputFile],
    actions: Sequence[Sequence[Action]],
    elsewhere: Collection[tuple[int, int]] = (),
) -> tuple[Job, ...]:
    """All visits, in order.

    Args:
        tensors: the source's.
        files: of all releases.
        actions: for each release what it makes of each tensor.
        elsewhere: (release, place of a tensor in the source) that another machine records.
    """
    placed: dict[_Key, dict[Action, dict[Role, list[Piece]]]] = {}
    for number, file in enumerate(files):
        position = len(file.header)
        for key, one in _visits(file):
            action = actions[file.release][one.order]
            by_role = placed.setdefault(key, {}).setdefault(action, defaultdict(list))
            by_role[one.part.role].append(Piece(number, position, one.cut))
            position += one.nbytes
    return tuple(
        _job(tensors[key[-1]], key[-1], by_action, files, elsewhere)
        for key, by_action in sorted(placed.items(), key=lambda item: item[0])
    )


def _job(
    tensor: StoredWeight,
    order: int,
    by_action: dict[Action, dict[Role, list[Piece]]],
    files: Sequence[OutputFile],
    elsewhere: Collection[tuple[int, int]],
) -> Job:
    products = []
    for action, by_role in by_action.items():
        releases = {files[piece.file].release for piece in by_role["weight"]}
        recorded = frozenset(release for release in releases if (release, order) not in elsewhere)
        products.append(Product(action, {role: tuple(pieces) for role, pieces in by_role.items()}, recorded))
    if any(product.releases for product in products):
        return Job(tensor, tuple(products))
    cuts = [piece.cut for product in products for piece in product.pieces["weight"]]
    stored = tensor.weight.shape[0] if tensor.weight.shape else 1  # a rank that is filled up has more
    end = min(max(cut.row1 for cut in cuts), stored)
    return Job(tensor, tuple(products), (min(*(cut.row0 for cut in cuts), end), end))


def bytes_visited(tensors: Sequence[StoredWeight], files: Sequence[OutputFile]) -> int:
    """Bytes of the source that the jobs read. A tensor that stands in several places of the order is read again."""
    among = {one.order for file in files for one in _split(file)[1]}
    apart = {key for file in files for key, _ in _visits(file, among=False)}
    return sum(_bytes(tensors[order]) for order in among) + sum(_bytes(tensors[key[-1]]) for key in apart)


def _visits(file: OutputFile, *, among: bool = True) -> Iterator[tuple[_Key, Slice]]:
    """The places of a file's slices in the order of work. `among`: also of those that other releases may share."""
    ahead, middle, behind = _split(file)
    yield from (((file.first, 0, -one.alignment, one.order), one) for one in ahead)
    if among:
        yield from (((one.order, 1, 0, one.order), one) for one in middle)
    yield from (((file.last, 2, 0, one.order), one) for one in behind)


def _split(file: OutputFile) -> tuple[tuple[Slice, ...], tuple[Slice, ...], tuple[Slice, ...]]:
    end = len(file.slices) - file.behind
    return file.slices[: file.ahead], file.slices[file.ahead : end], file.slices[end:]


def _bytes(tensor: StoredWeight) -> int:
    return tensor.weight.nbytes + (tensor.scale.nbytes if tensor.scale else 0)
