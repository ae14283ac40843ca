"""`Share`: the output files that one part of a conversion makes, and what it reads of the source for them.

The shares follow from the plan and their number alone, so machines that never talk to each other agree on them. Whole
files are shared out: a file is written by one machine, front to back, as a conversion alone writes it.

Tensors that ranks hold in common, or cut, go into files of several shares. Whoever needs all rows of such a tensor
records its digests, and the records are compared in the end. If each share needs only some rows, one of them reads it
whole.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flagrelease.convert.planning.collector import paused_collector
from flagrelease.convert.planning.passes import only_files, place_in_source, source_files
from flagrelease.convert.planning.plan import Plan
from flagrelease.errors import UsageError


@dataclass(frozen=True, slots=True)
class Share:
    """What part `number` of `count` makes.

    Attributes:
        number: from 1 on.
        files: indexes into `Plan.files`, ascending.
        elsewhere: (release, place of a tensor in the source) of which this share reads some rows and another all.
        sources: names of the checkpoint's tensor files that this part compares with their stated digests.
        nbytes: of the files.
        bytes_to_read: of the source, for the files.
        bytes_to_compare: of `sources`; read beside the work where somebody states a digest.
    """

    number: int
    count: int
    files: tuple[int, ...] = field(repr=False)
    elsewhere: frozenset[tuple[int, int]] = field(repr=False)
    sources: frozenset[str] = field(repr=False)
    nbytes: int
    bytes_to_read: int
    bytes_to_compare: int

    def __str__(self) -> str:
        """As `--part` takes it: `3/8`."""
        return f"{self.number}/{self.count}"

    def names(self, plan: Plan) -> list[str]:
        """Its files, as RELEASE/FILE."""
        files = (plan.files[number] for number in self.files)
        return [f"{plan.releases[file.release].target.folder}/{file.name}" for file in files]

    def of(self, plan: Plan) -> Plan:
        """`plan` with the files of this share alone."""
        return _only(plan, self.files, self.elsewhere)


def parse_part(text: str) -> tuple[int, int]:
    """Read `I/N`: part I of N, from 1 on.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch("([0-9]+)/([0-9]+)", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(f"--part {text}: write which part of how many, from 1/8 to 8/8")
    return number, count


def require_enough_files(plan: Plan, count: int) -> None:
    """Refuse more parts than the plan has files.

    Raises:
        UsageError: with the number of files, and the key of the recipe that makes more of them.
    """
    if count > len(plan.files):
        key = "rank_part_bytes" if any(release.layout for release in plan.releases) else "max_file_bytes"
        raise UsageError(
            f"{count} parts: the plan has {len(plan.files)} files, and a part makes whole files, so there can be at "
            f"most {len(plan.files)} parts; convert.{key} in the recipe makes more and smaller files"
        )


@paused_collector()
def divide(plan: Plan, count: int) -> tuple[Share, ...]:
    """Divide the files of `plan` into `count` shares, balanced by bytes.

    Two ways are tried: stretches of the files in the order of the source, so that what stands together is read once;
    and the largest file next to whoever has least. The one with the smaller largest share (bytes written and read) is
    taken.

    Args:
        plan: all files of all releases.
        count: parts, at least 1.

    Raises:
        UsageError: there are fewer files than parts.
    """
    require_enough_files(plan, count)
    order = sorted(range(len(plan.files)), key=place_in_source(plan))
    by_size = _deal([(plan.files[number].size, number) for number in order], count)
    ways = [sorted(map(sorted, groups)) for groups in (_stretches(plan, order, count), by_size)]
    found = [_shares(plan, groups) for groups in (ways if ways[0] != ways[1] else ways[:1])]
    return min(found, key=lambda shares: max(share.nbytes + share.bytes_to_read for share in shares))


def _shares(plan: Plan, groups: Sequence[Sequence[int]]) -> tuple[Share, ...]:
    elsewhere = _recorded_elsewhere(plan, groups)
    visits = [_visited(_only(plan, group, elsewhere[number])) for number, group in enumerate(groups)]
    sources = _deal_sources(plan, [names for names, _ in visits])
    sizes = {header.file.name: header.file_size for header in plan.source.index.headers}
    return tuple(
        Share(
            number=number + 1,
            count=len(groups),
            files=tuple(group),
            elsewhere=elsewhere[number],
            sources=frozenset(sources[number]),
            nbytes=sum(plan.files[n].size for n in group),
            bytes_to_read=visits[number][1],
            bytes_to_compare=sum(sizes[name] for name in sources[number]),
        )
        for number, group in enumerate(groups)
    )


def _visited(part: Plan) -> tuple[frozenset[str], int]:
    """The files of the source that `part` reads, and how many bytes of them."""
    return source_files(part), sum(job.bytes_to_read for job in part.jobs)


def _deal_sources(plan: Plan, read: Sequence[frozenset[str]]) -> list[list[str]]:
    """Which files of the source each group compares: such as it reads anyway, so that a hub sends their bytes once.

    The largest first, each to whoever of its readers has least by then."""
    dealt: list[list[str]] = [[] for _ in read]
    taken = [0] * len(read)
    for header in sorted(plan.source.index.headers, key=lambda header: -header.file_size):
        name = header.file.name
        readers = [group for group, names in enumerate(read) if name in names] or range(len(read))
        group = min(readers, key=lambda one: (taken[one], one))
        dealt[group].append(name)
        taken[group] += header.file_size
    return dealt


def _recorded_elsewhere(plan: Plan, groups: Sequence[Sequence[int]]) -> list[frozenset[tuple[int, int]]]:
    """For each group the tensors of which it reads some rows, so that others record them.

    Where no group of a release needs all rows of a tensor, the one that so far reads least beside its own rows reads it
    whole."""
    held = _rows_held(plan, groups)
    elsewhere: list[set[tuple[int, int]]] = [set() for _ in groups]
    beside = [0] * len(groups)
    for order in sorted(held):
        by_release = held[order]
        weight = plan.source.tensors[order].weight
        rows = weight.shape[0] if weight.shape else 1
        whole = {group for holders in by_release.values() for group, span in holders.items() if span == (0, rows)}
        for holders in by_release.values():
            if whole.isdisjoint(holders):
                reader = min(holders, key=lambda group: (beside[group], group))
                whole.add(reader)
                first, end = holders[reader]
                beside[reader] += weight.nbytes // rows * (rows - (end - first))
        for release, holders in by_release.items():
            for group in holders.keys() - whole:
                elsewhere[group].add((release, order))
    return [frozenset(one) for one in elsewhere]


def _rows_held(plan: Plan, groups: Sequence[Sequence[int]]) -> dict[int, dict[int, dict[int, tuple[int, int]]]]:
    """Place of a tensor in the source -> release -> group -> first row, and end of the rows, that the group's files
    hold of it."""
    held: dict[int, dict[int, dict[int, tuple[int, int]]]] = defaultdict(dict)
    for group, files in enumerate(groups):
        for file in (plan.files[number] for number in files):
            for one in file.slices:
                if one.part.role == "weight":
                    holders = held[one.order].setdefault(file.release, {})
                    first, end = holders.get(group, (one.cut.row0, one.cut.row1))
                    holders[group] = min(first, one.cut.row0), max(end, one.cut.row1)
    return held


def _only(plan: Plan, files: Sequence[int], elsewhere: frozenset[tuple[int, int]]) -> Plan:
    return replace(only_files(plan, files), elsewhere=elsewhere)


def _stretches(plan: Plan, order: Sequence[int], count: int) -> list[list[int]]:
    """Consecutive files of `order` in `count` groups, none empty, the largest group as small as it can be."""
    sizes = [plan.files[number].size for number in order]
    low, high = max(sizes), sum(sizes)
    while low < high:  # the smallest limit under which `count` groups are enough
        limit = (low + high) // 2
        if len(_within(sizes, limit, count)) <= count:
            high = limit
        else:
            low = limit + 1
    ends = _within(sizes, low, count)
    return [list(order[begin:end]) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _within(sizes: Sequence[int], limit: int, count: int) -> list[int]:
    """Where groups of at most `limit` bytes end; earlier than need be where the groups to come would lack files."""
    ends: list[int] = []
    taken = 0
    for number, size in enumerate(sizes):
        if number and (taken + size > limit or len(sizes) - number == count - 1 - len(ends)):
            ends.append(number)
            taken = 0
        taken += size
    return [*ends, len(sizes)]


def _deal(sized: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """The largest first, each to whoever has least by then; among equals the order decides."""
    groups: list[list[int]] = [[] for _ in range(count)]
    least = [(0, group) for group in range(count)]
    for size, one in sorted(sized, key=lambda item: -item[0]):
        taken, group = heapq.heappop(least)
        groups[group].append(one)
        heapq.heappush(least, (taken + size, group))
    return groups
