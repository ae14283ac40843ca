"""`DiskPlan`: in which order the files of a plan are made so that they never take more than a disk budget together.

The files are divided into passes. A pass writes its files in one visit to the part of the source that they need; every
file of it is handed over (published, or moved by a command) and deleted before the next pass begins. So the disk never
holds more than the files of one pass and the records of all releases. A pass that holds few files reads few tensors of
an hf release, but all tensors that ranks share of an mp release: small budgets are paid for by reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from flagrelease.convert.planning.jobs import bytes_visited
from flagrelease.convert.planning.plan import Plan, ReleasePlan
from flagrelease.errors import ResourceError

# What a record takes at most beside the names in it: of a tensor in the journal five digests, the action in words,
# counts and losses; of a tensor in the manifest a digest, dtype and shape, and digest, counts and losses of its source.
_IN_JOURNAL, _NAMES_IN_JOURNAL = 1200, 3
_IN_MANIFEST, _OF_SOURCE_IN_MANIFEST = 300, 800
_FILE_RECORD = 250
# A file has a record for each of these, as `running.lanes` writes them; each may be written again after a kill.
_RECORDED_EVERY = 256 << 20
_FOLDER = 64 << 10  # lock, binding, first lines
_SHOWN = 5  # files in a message


@dataclass(frozen=True, slots=True)
class Pass:
    """Files that are made together.

    Attributes:
        files: indexes into `Plan.files`, ascending.
        nbytes: of these files.
        bytes_to_read: of the source, for these files.
    """

    files: tuple[int, ...] = field(repr=False)
    nbytes: int
    bytes_to_read: int


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """The passes of a plan under a budget. All figures are bytes.

    Attributes:
        records: what journals, documents and manifests of all releases take at most; they stay beside every pass.
        least: the smallest budget that would do.
    """

    budget: int
    passes: tuple[Pass, ...]
    records: int
    least: int

    @property
    def peak(self) -> int:
        """What the disk holds at most: the files of the largest pass, and all records."""
        return max((one.nbytes for one in self.passes), default=0) + self.records

    @property
    def bytes_to_read(self) -> int:
        """Of the source, in all passes together."""
        return sum(one.bytes_to_read for one in self.passes)


def plan_passes(plan: Plan, budget: int) -> DiskPlan:
    """Divide the files of `plan` into passes that fit `budget` bytes.

    Several orders are tried (release by release; by place in the source, where releases share what is read; hf files
    before ranks) and the one that reads least is taken. Which it is depends on plan and budget alone.

    Raises:
        ResourceError: the largest file and the records do not fit; the message has the files and the least budget.
    """
    records = sum(record_bytes(release) for release in plan.releases)
    least = max((file.size for file in plan.files), default=0) + records
    if budget < least:
        raise ResourceError(_refusal(plan, budget, records, least))
    candidates = []
    for order in _orders(plan):
        groups = list(_pack(plan, order, budget - records))
        read = [bytes_visited(plan.source.tensors, [plan.files[n] for n in group]) for group in groups]
        candidates.append((sum(read), len(groups), groups, read))
    _, _, groups, read = min(candidates, key=lambda candidate: candidate[:2])
    passes = (
        Pass(tuple(sorted(group)), sum(plan.files[n].size for n in group), count)
        for group, count in zip(groups, read, strict=True)
    )
    return DiskPlan(budget, tuple(passes), records, least)


def only_files(plan: Plan, files: Sequence[int]) -> Plan:
    """`plan` with these of its files alone (indexes, ascending): its jobs then visit what they need and nothing else.

    The releases stay whole: what they are, and what their manifests say, does not depend on who makes which file when.
    """
    return replace(plan, files=tuple(plan.files[number] for number in files))


def source_files(plan: Plan) -> frozenset[str]:
    """Names of the checkpoint's files that the jobs of `plan` read."""
    stored = (part for job in plan.jobs for part in (job.tensor.weight, job.tensor.scale) if part is not None)
    return frozenset(part.file.name for part in stored)


def record_bytes(release: ReleasePlan) -> int:
    """What is kept of a release beside its tensor files, at most: journal, documents, manifest."""
    names = {tensor.spec.name for tensor, _, _ in release.parts.values()}
    count, letters = len(names), sum(map(len, names))
    journal = count * _IN_JOURNAL + letters * _NAMES_IN_JOURNAL
    journal += sum(2 * (1 + file.size // _RECORDED_EVERY) * (_FILE_RECORD + len(file.name)) for file in release.files)
    sources = {tensor.weight.file.name for tensor, _, _ in release.parts.values()}
    journal += sum(2 * (_FILE_RECORD + len(name)) for name in sources)  # its state, and that it was compared whole
    manifest = len(release.parts) * _IN_MANIFEST + sum(map(len, release.parts))
    manifest += count * _OF_SOURCE_IN_MANIFEST + 4 * letters
    manifest += len(json.dumps(release.planned)) + _FILE_RECORD * (len(release.files) + len(release.documents.written))
    return journal + manifest + release.documents.size + _FOLDER


def _orders(plan: Plan) -> Iterator[Sequence[int]]:
    numbers = range(len(plan.files))
    yield numbers
    yield sorted(numbers, key=place_in_source(plan))
    place = place_in_source(plan)
    yield sorted(numbers, key=lambda n: (plan.releases[plan.files[n].release].layout is not None, place(n)))


def place_in_source(plan: Plan) -> Callable[[int], tuple[int, int, float, int]]:
    """Sorts files by the part of the source that they hold; ranks of several releases by the experts that they share.

    The files of a release stand rank by rank, so the place of a file among them says which share of the experts it has.
    """
    begins: dict[int, int] = {}
    for number, file in enumerate(plan.files):
        begins.setdefault(file.release, number)

    def key(number: int) -> tuple[int, int, float, int]:
        file = plan.files[number]
        share = (number - begins[file.release]) / len(plan.releases[file.release].files)
        return file.first, file.last, share, number

    return key


def _pack(plan: Plan, order: Sequence[int], room: int) -> Iterator[list[int]]:
    group: list[int] = []
    taken = 0
    for number in order:
        size = plan.files[number].size
        if group and taken + size > room:
            yield group
            group, taken = [], 0
        group.append(number)
        taken += size
    if group:
        yield group


def _refusal(plan: Plan, budget: int, records: int, least: int) -> str:
    large = [file for file in plan.files if file.size + records > budget]
    named = sorted(large or plan.files, key=lambda file: (-file.size, file.release, file.name))
    folders = [release.target.folder for release in plan.releases]
    shown = ", ".join(f"{folders[file.release]}/{file.name} ({file.size:,} bytes)" for file in named[:_SHOWN])
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    advice = (
        "; convert.rank_part_bytes in the recipe cuts ranks into smaller files"
        if any(plan.releases[file.release].layout for file in named)
        else "; convert.max_file_bytes in the recipe makes them smaller"
    )
    return (
        f"--disk of {budget:,} bytes: too small for {shown}{more} beside {records:,} bytes of records; "
        f"{least:,} bytes are the least that would do{advice}"
    )
