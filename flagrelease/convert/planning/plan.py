"""`Plan`: every byte of every release, placed before any is written. Pure: headers in, a plan out, no torch.

A release is a set of files (`files.py`), a file a sequence of slices (`slices.py`), a slice a rectangle of what an
action makes of a source tensor (`parts.py`). The plan also fixes the order of work (`jobs.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from flagrelease import __version__
from flagrelease.convert.planning.collector import paused_collector
from flagrelease.convert.planning.documents import Documents, make_documents
from flagrelease.convert.planning.files import OutputFile, plan_files
from flagrelease.convert.planning.jobs import Job, bytes_visited, make_jobs
from flagrelease.convert.planning.layouts import TensorParallel, tensor_parallel
from flagrelease.convert.planning.parts import Part, parts_of, with_copy
from flagrelease.convert.planning.slices import slices_by_rank
from flagrelease.convert.planning.target import Action, Target, require_possible
from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.stored import StoredWeight
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.manifest import MANIFEST_NAME, alike_but_for_case
from flagrelease.source.source import Source


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """One release: its files, its stored tensors with where they come from, and its documents.

    Attributes:
        actions: what the release makes of each tensor of the source, in the source's order.
        planned: what the two digests are of, but for the source's identity.
        digest: of everything planned, and of the source's identity; the manifest records it.
        digest_without_source: of everything planned. Two training steps of one model have equal ones.
    """

    target: Target
    layout: TensorParallel | None
    files: tuple[OutputFile, ...]
    actions: tuple[Action, ...] = field(repr=False)
    parts: dict[str, tuple[StoredWeight, Action, Part]] = field(repr=False)
    documents: Documents
    planned: dict[str, Any] = field(repr=False)
    digest: str
    digest_without_source: str

    @property
    def size(self) -> int:
        """Bytes of all its files (without the manifest)."""
        return sum(file.size for file in self.files) + self.documents.size

    def digest_as(self, source: Source, tool: str, options: dict[str, Any], provenance: Provenance) -> str:
        """The digest that a release with these very files and documents has if this version and recipe planned it."""
        other = {"tool": tool, "options": options, "provenance": asdict(provenance)}
        return _digest(self.planned | other | {"source": source.identity.digest})

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


@dataclass(frozen=True)
class Plan:
    """Several releases from one pass over one source.

    Attributes:
        files: of all releases, or those of them that are made here.
        elsewhere: (release, place of a tensor in the source) where another machine, which makes other files of the
            release, records the tensor.
    """

    source: Source
    options: ConvertSpec
    provenance: Provenance
    releases: tuple[ReleasePlan, ...]
    files: tuple[OutputFile, ...]
    elsewhere: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """The order of work. Only a conversion asks for it: V4-Pro has half a million pieces to place."""
        actions = [release.actions for release in self.releases]
        return make_jobs(self.source.tensors, self.files, actions, self.elsewhere)

    @property
    def bytes_to_write(self) -> int:
        """Bytes of all files of all releases."""
        return sum(release.size for release in self.releases)

    @cached_property
    def bytes_to_read(self) -> int:
        """Bytes of the source that the jobs read; tensors that stand in several places of the order are read again."""
        return bytes_visited(self.source.tensors, self.files)


@paused_collector()
def make_plan(
    source: Source,
    targets: Iterable[Target],
    options: ConvertSpec,
    provenance: Provenance = Provenance(),
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Plan `targets` from `source`.

    Args:
        source: an understood checkpoint.
        targets: releases; duplicates are planned once.
        options: what of a recipe decides bytes.
        provenance: recorded in each release's manifest and digest.
        told: called with the releases planned, and their number.

    Raises:
        UsageError: a target that the source or the model's dimensions do not allow, two targets for one folder.
        CheckpointError: two files of a release would have names that differ only in case.
    """
    unique = list(dict.fromkeys(targets))
    folders = [target.folder for target in unique]
    for target in unique:
        if folders.count(target.folder) > 1:
            raise UsageError(
                f"two targets that differ only in o-groups or draft stages would both be written to {target.folder!r}"
            )
    releases = []
    for number, target in enumerate(unique):
        told(number, len(unique))
        releases.append(_release(source, target, number, options, provenance))
    return Plan(
        source, options, provenance, tuple(releases), tuple(file for release in releases for file in release.files)
    )


def _release(source: Source, target: Target, number: int, options: ConvertSpec, provenance: Provenance) -> ReleasePlan:
    require_possible(target, source)
    held = target.held(source)
    layout = None if target.mp is None else tensor_parallel(held.config, target.mp, target.o_groups)
    actions = tuple(target.action(tensor) for tensor in source.tensors)
    copies = dict(target.release.copies) if held.config.has_mtp_stage else {}
    by_tensor = [
        with_copy(parts_of(tensor, action, target), copies.get(tensor.spec.name)) if target.holds(tensor) else ()
        for tensor, action in zip(source.tensors, actions, strict=True)
    ]
    limit = options.max_file_bytes if layout is None else options.rank_part_bytes
    files = tuple(plan_files(slices_by_rank(source, target, layout, by_tensor), target, number, limit))
    parts = {
        part.name: (tensor, action, part)
        for tensor, action, own in zip(source.tensors, actions, by_tensor, strict=True)
        for part in own
    }
    indexes: dict[str, tuple[dict[str, str], int]] = {}
    if layout is None:
        weight_map = {one.part.name: file.name for file in files for one in file.slices}
        indexes[f"{target.release.file_stem}.safetensors.index.json"] = (
            weight_map,
            sum(one.nbytes for file in files for one in file.slices),
        )
    documents = make_documents(held, target, indexes, parts)
    paths = {MANIFEST_NAME, *(file.name for file in files), *documents.written, *documents.copied}
    if alike := alike_but_for_case(paths):
        raise CheckpointError(
            f"{source.root}: the release would hold {alike[0]!r} and {alike[1]!r}, which differ only in case; "
            "ModelScope and the file systems of macOS and Windows keep one of them. Rename or remove one in the source"
        )
    planned = {
        "tool": __version__,
        "target": [target.dtype, target.layout, layout.o_groups if layout else None, target.drafts],
        "options": options.model_dump(mode="json"),
        "provenance": asdict(provenance),
        "documents": documents.digests(),
        "files": [[f.name, f.size, hashlib.sha256(f.header).hexdigest()] for f in files],
    }
    digests = _digest(planned | {"source": source.identity.digest}), _digest(planned)
    return ReleasePlan(target, layout, files, actions, parts, documents, planned, *digests)


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
