"""`Plan`: every byte of every release, placed before any is written. Pure: headers in, a plan out, no torch.

A release is a set of files, a file a sequence of pieces, a piece a rectangle of one output of one source tensor. The
plan also fixes the order of work. Inside a file tensors stand by alignment (8, 4, 2, 1 bytes, so that every tensor is
aligned), then as in the source. The jobs are one global order of which every file's own order is a part; so a file can
be written front to back whatever else is written beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from flagrelease import __version__
from flagrelease.convert.documents import Documents, make_documents
from flagrelease.convert.layouts import Region, TensorParallel, matrix_shape, tensor_parallel
from flagrelease.convert.parts import Cut, Part, cut, parts_of, require_whole_blocks
from flagrelease.convert.target import Action, Target, require_possible
from flagrelease.errors import UsageError
from flagrelease.records.recipe import ConvertSpec
from flagrelease.shard.header import build_header
from flagrelease.shard.index import INDEX_NAME
from flagrelease.source.source import Source, SourceTensor

# What an entry adds to a header beside its name, at most: dtype, two dimensions, two offsets and punctuation.
_ENTRY_BYTES = 120


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

    tensor: SourceTensor
    products: tuple[Product, ...]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A tensor file of a release: header bytes and exact size."""

    release: int
    name: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """One release: its files, its stored tensors with where they come from, documents, and the digest of all that."""

    target: Target
    layout: TensorParallel | None
    files: tuple[OutputFile, ...]
    parts: dict[str, tuple[SourceTensor, Action, Part]]
    documents: Documents
    digest: str

    @property
    def size(self) -> int:
        """Bytes of all its files (without the manifest)."""
        return sum(file.size for file in self.files) + self.documents.size

    @property
    def rank_size(self) -> int | None:
        """Bytes of the largest rank's files, None for the hf layout."""
        if self.layout is None:
            return None
        ranks: dict[str, int] = defaultdict(int)
        for file in self.files:
            ranks[file.name.split("-")[0]] += file.size
        return max(ranks.values())


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a recipe says of the source and of itself, for the manifest; all None for a bare folder."""

    model: str | None = None
    repo: str | None = None
    revision: str | None = None
    license: str | None = None
    recipe: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Several releases from one pass over one source."""

    source: Source
    options: ConvertSpec
    provenance: Provenance
    releases: tuple[ReleasePlan, ...]
    files: tuple[OutputFile, ...]
    jobs: tuple[Job, ...]

    @property
    def bytes_to_write(self) -> int:
        """Bytes of all files of all releases."""
        return sum(release.size for release in self.releases)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the source that the jobs read; tensors that stand in several places of the order are read again."""
        return sum(job.tensor.weight.nbytes + (job.tensor.scale.nbytes if job.tensor.scale else 0) for job in self.jobs)


def make_plan(
    source: Source, targets: Iterable[Target], options: ConvertSpec, provenance: Provenance = Provenance()
) -> Plan:
    """Plan `targets` from `source`.

    Args:
        source: an understood checkpoint.
        targets: releases; duplicates are planned once.
        options: what of a recipe decides bytes.
        provenance: recorded in each release's manifest and digest.

    Raises:
        UsageError: a target that the source or the model's dimensions do not allow, two targets for one folder.
    """
    unique = list(dict.fromkeys(targets))
    folders = [target.folder for target in unique]
    for target in unique:
        if folders.count(target.folder) > 1:
            raise UsageError(f"two targets, o-groups shared and split, would both be written to {target.folder!r}")
    drafts = [_draft(source, target, options) for target in unique]
    files: list[OutputFile] = []
    placed: dict[tuple[_Key, int], dict[Action, tuple[list[Piece], list[Piece]]]] = {}
    releases = []
    for number, (target, draft) in enumerate(zip(unique, drafts, strict=True)):
        first = len(files)
        files += _place(source, draft, number, first, placed)
        releases.append(_release(source, target, draft, tuple(files[first:]), options, provenance))
    jobs = tuple(
        Job(
            source.tensors[order],
            tuple(
                Product(action, tuple(weight), tuple(scale), frozenset(files[piece.file].release for piece in weight))
                for action, (weight, scale) in by_action.items()
            ),
        )
        for (_, order), by_action in sorted(placed.items(), key=lambda item: item[0])
    )
    return Plan(source, options, provenance, tuple(releases), tuple(files), jobs)


# Position of a (tensor, file) in the global order of work. Tensors of the lowest alignment of a release stand at their
# place in the source, so that releases share the visit; the others stand at their file's beginning.
_Key = tuple[int, int, int]


@dataclass(slots=True)
class _DraftFile:
    name: str
    # (order of the tensor in the source, part, region of the weight in elements)
    entries: list[tuple[int, Part, Region]] = field(default_factory=list)


@dataclass(slots=True)
class _Draft:
    layout: TensorParallel | None
    actions: list[Action]
    parts: list[tuple[Part, ...]]
    files: list[_DraftFile]
    alignment: int


def _draft(source: Source, target: Target, options: ConvertSpec) -> _Draft:
    require_possible(target, source)
    layout = None if target.mp is None else tensor_parallel(source.config, target.mp, target.o_groups)
    actions = [target.action(tensor) for tensor in source.tensors]
    parts = [parts_of(t, a, target) for t, a in zip(source.tensors, actions, strict=True)]
    ranks: dict[int, list[tuple[int, Part, Region]]] = defaultdict(list)
    for order, tensor in enumerate(source.tensors):
        whole = Region(0, matrix_shape(tensor.spec.shape)[0], 0, matrix_shape(tensor.spec.shape)[1])
        for rank, region in layout.regions(tensor.spec) if layout else [(0, whole)]:
            for part in parts[order]:
                require_whole_blocks(part, region, tensor.spec, target)
                ranks[rank].append((order, part, region))
    limit = options.max_file_bytes if layout is None else options.rank_part_bytes
    files = []
    for rank in sorted(ranks):
        groups = list(_pack(ranks[rank], limit))
        for number, entries in enumerate(groups, start=1):
            files.append(_DraftFile(_file_name(target, rank, number, len(groups)), entries))
    return _Draft(layout, actions, parts, files, 2 if target.dtype == "bf16" else 1)


def _pack(entries: list[tuple[int, Part, Region]], limit: int | None) -> Iterator[list[tuple[int, Part, Region]]]:
    """Cut a sequence into files of at most `limit` bytes; a weight stays with its scale."""
    if limit is None:
        yield entries
        return
    current: list[tuple[int, Part, Region]] = []
    size = _ENTRY_BYTES
    at = 0
    while at < len(entries):
        end = at + 1
        while end < len(entries) and entries[end][0] == entries[at][0]:
            end += 1
        cost = sum(cut(part, region).nbytes + len(part.name) + _ENTRY_BYTES for _, part, region in entries[at:end])
        if current and size + cost > limit:
            yield current
            current, size = [], _ENTRY_BYTES
        current += entries[at:end]
        size += cost
        at = end
    yield current


def _file_name(target: Target, rank: int, number: int, count: int) -> str:
    if target.mp is None:
        return f"model-{number:05d}-of-{count:05d}.safetensors"
    part = f"-part{number}" if count > 1 else ""
    return f"model{rank}-mp{target.mp}{part}.safetensors"


def _place(
    source: Source,
    draft: _Draft,
    release: int,
    first: int,
    placed: dict[tuple[_Key, int], dict[Action, tuple[list[Piece], list[Piece]]]],
) -> Iterator[OutputFile]:
    """Order each file, fix offsets, and enter every piece in the global order of work."""
    for number, file in enumerate(draft.files, start=first):
        start = file.entries[0][0]
        keyed = []
        for order, part, region in file.entries:
            alignment = min(p.alignment for p in draft.parts[order])
            hoisted = alignment > draft.alignment
            key = (start, 0, -alignment) if hoisted else (order, 1, 0)
            keyed.append((key, order, part, region))
        keyed.sort(key=lambda entry: entry[:2])  # stable: a scale stays behind its weight
        cuts = [cut(part, region) for _, _, part, region in keyed]
        header = build_header((p.name, p.dtype, c.shape(p)) for (_, _, p, _), c in zip(keyed, cuts, strict=True))
        position = len(header)
        for (key, order, part, _), piece_cut in zip(keyed, cuts, strict=True):
            weight, scale = placed.setdefault((key, order), {}).setdefault(draft.actions[order], ([], []))
            (scale if part.is_scale else weight).append(Piece(number, position, piece_cut))
            position += piece_cut.nbytes
        yield OutputFile(release, file.name, header, position)


def _release(
    source: Source,
    target: Target,
    draft: _Draft,
    files: tuple[OutputFile, ...],
    options: ConvertSpec,
    provenance: Provenance,
) -> ReleasePlan:
    parts = {
        part.name: (tensor, action, part)
        for tensor, action, tensor_parts in zip(source.tensors, draft.actions, draft.parts, strict=True)
        for part in tensor_parts
    }
    weight_map = None
    if draft.layout is None:
        weight_map = {part.name: file.name for file in draft.files for _, part, _ in file.entries}
    total = sum(part.nbytes for _, _, part in parts.values())
    documents = make_documents(source, target, {INDEX_NAME: (weight_map, total)} if weight_map else {})
    digest = hashlib.sha256()
    digest.update(
        json.dumps(
            {
                "tool": __version__,
                "source": source.index.identity(),
                "config": source.config_sha256,
                "target": [target.dtype, target.layout, draft.layout.o_groups if draft.layout else None],
                "options": options.model_dump(mode="json"),
                "provenance": asdict(provenance),
                "documents": documents.digests(),
                "files": [[f.name, f.size, hashlib.sha256(f.header).hexdigest()] for f in files],
            },
            sort_keys=True,
        ).encode()
    )
    return ReleasePlan(target, draft.layout, files, parts, documents, digest.hexdigest())
