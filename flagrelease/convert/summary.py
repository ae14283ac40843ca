"""`Summary`: a plan in numbers that people and scripts act on: files, bytes, memory, disk, cards, hubs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.table import load_chips
from flagrelease.convert.planning.collector import paused_collector
from flagrelease.convert.planning.fit import RESERVE_BYTES, card_fits, free_bytes, hub_problems
from flagrelease.convert.planning.memory import memory_bound
from flagrelease.convert.planning.passes import DiskPlan
from flagrelease.convert.planning.plan import Plan, ReleasePlan
from flagrelease.convert.request import ConversionRequest
from flagrelease.convert.sharing.shares import Share
from flagrelease.convert.sharing.summary import PartSummary, summarise_share
from flagrelease.convert.stacks import StackSummary, judge_stacks, stack_notes, stack_problems
from flagrelease.errors import UsageError
from flagrelease.model.families import family_of
from flagrelease.model.family import SequenceCaches
from flagrelease.publish.hubs.registry import file_limits
from flagrelease.records.manifest import Drafts, OGroups


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class CardSummary(_Record):
    """One release on the cards of one chip.

    Attributes:
        asked: whether the release is for this chip.
        hardware: whether the chip computes with the release's numbers; null if nobody has said.
        smallest_mp: the fewest ranks whose weights fit, null if none do.
        nodes, cards: that the release takes, one rank a card.
        left_bytes: of a card's memory beside the weights and what is kept free for the runtime; 0 if they do not fit.
        context: tokens of the longest sequence whose caches fit what is left, at most what the model allows.
        fit: how many of each of the release's `sequences` have room there together.
    """

    chip: str
    asked: bool
    hardware: bool | None
    card_bytes: int
    weight_bytes: int
    fits: bool
    smallest_mp: int | None
    cards_per_node: int
    nodes: int
    cards: int
    left_bytes: int
    context: int
    fit: list[int]


class SequenceSummary(_Record):
    """What the caches of one sequence take on every card in the bundled engine, for contexts of that many tokens."""

    context: int
    bytes: int


class FileSummary(_Record):
    """One tensor file."""

    path: str
    bytes: int


class PassSummary(_Record):
    """Files (`RELEASE/FILE`) that are made together under `--disk`, handed over and deleted before the next pass."""

    files: list[str]
    bytes: int
    bytes_to_read: int


class DiskSummary(_Record):
    """The order of work under `--disk`.

    Attributes:
        budget_bytes: what was asked for; peak_bytes: what the disk holds at most; least_bytes: the least that would do.
        record_bytes: of the peak, what journals, documents and manifests take at most.
    """

    budget_bytes: int
    peak_bytes: int
    least_bytes: int
    record_bytes: int
    passes: list[PassSummary]


class ReleaseSummary(_Record):
    """One release."""

    folder: str
    dtype: str
    layout: str
    o_groups: OGroups | None
    drafts: Drafts
    plan: str
    bytes: int
    tensors: int
    tensor_bytes: int
    rank_bytes: int | None
    largest_file: FileSummary
    files: list[FileSummary]
    companions: list[str]
    sequences: list[SequenceSummary]
    cards: list[CardSummary]
    hubs: dict[str, list[str]]
    stacks: list[StackSummary]


class Summary(_Record):
    """What `flagrelease plan` reports.

    Attributes:
        passes: the order of work under `--disk`; null without it.
        parts: what each machine does under `--parts`; null without it.
        peak_disk_bytes: what a conversion needs; disk_free_bytes: what is free at `disk`, the folder it would write to.
        notes: where the releases of each chip come from, and what nobody knows of the stacks they are made for.
        left_out: file or folder of the source that goes into no release -> why.
        remarks: what is unusual in the source and no reason to refuse it.
        hub_problems: those of the hubs that the recipe names; they refuse the plan.
        stack_problems: releases that the stack named in the recipe would not load; they refuse the plan.
    """

    source: str
    source_identity: str
    source_tensors: int
    source_bytes: int
    bytes_to_read: int
    bytes_to_write: int
    peak_memory_bytes: int
    peak_disk_bytes: int
    disk: str
    disk_free_bytes: int
    workers: int
    passes: DiskSummary | None
    parts: list[PartSummary] | None
    notes: list[str]
    releases: list[ReleaseSummary]
    left_out: dict[str, str]
    remarks: list[str]
    hub_problems: list[str]
    stack_problems: list[str]

    def require_takers(self) -> None:
        """Refuse a plan that a hub of the recipe cannot hold, or that a stack of the recipe does not load.

        Raises:
            UsageError: the first file, with the limit and the key of the recipe to set; or the first release, with the
                tensor that the stack would misread or leave out.
        """
        for problem in (*self.stack_problems, *self.hub_problems):
            raise UsageError(problem)


@paused_collector()
def summarise(
    plan: Plan,
    request: ConversionRequest,
    workers: int,
    out: Path,
    disk: DiskPlan | None = None,
    shares: Sequence[Share] | None = None,
) -> Summary:
    """The numbers of `plan`. Chips that were asked for come first; the others of the table say whether they fit.

    Args:
        plan: what would be written.
        request: what it was made for.
        workers: threads that decode.
        out: the folder that would be written to; it need not exist yet.
        disk: the passes, where a budget was given.
        shares: where it is to be divided among machines.
    """
    releases = [_release(plan, release, request) for release in plan.releases]
    return Summary(
        source=str(plan.source.root),
        source_identity=plan.source.identity.digest,
        source_tensors=len(plan.source.index.tensors),
        source_bytes=plan.source.index.total_size,
        bytes_to_read=plan.bytes_to_read if disk is None else disk.bytes_to_read,
        bytes_to_write=plan.bytes_to_write,
        peak_memory_bytes=memory_bound(plan, workers),
        peak_disk_bytes=plan.bytes_to_write if disk is None else disk.peak,
        disk=str(out),
        disk_free_bytes=free_bytes(out),
        workers=workers,
        passes=None if disk is None else _passes(plan, disk),
        parts=None if shares is None else [summarise_share(plan, share) for share in shares],
        notes=[*request.notes, *(note for one in releases for note in stack_notes(one.folder, one.stacks))],
        releases=releases,
        left_out=plan.source.companions.left_out,
        remarks=list(plan.source.index.remarks),
        hub_problems=[problem for release in plan.releases for problem in hub_problems(release, request.hubs)],
        stack_problems=[problem for one in releases for problem in stack_problems(one.folder, one.stacks)],
    )


def _passes(plan: Plan, disk: DiskPlan) -> DiskSummary:
    folders = [release.target.folder for release in plan.releases]
    return DiskSummary(
        budget_bytes=disk.budget,
        peak_bytes=disk.peak,
        least_bytes=disk.least,
        record_bytes=disk.records,
        passes=[
            PassSummary(
                files=[f"{folders[plan.files[n].release]}/{plan.files[n].name}" for n in one.files],
                bytes=one.nbytes,
                bytes_to_read=one.bytes_to_read,
            )
            for one in disk.passes
        ],
    )


def _release(plan: Plan, release: ReleasePlan, request: ConversionRequest) -> ReleaseSummary:
    config = plan.source.config
    family = family_of(config)
    caches = family.caches(config, release.target.dtype)
    files = [FileSummary(path=file.name, bytes=file.size) for file in release.files]
    return ReleaseSummary(
        folder=release.target.folder,
        dtype=release.target.dtype,
        layout=release.target.layout,
        o_groups=release.layout.o_groups if release.layout else None,
        drafts=release.target.drafts,
        plan=release.digest,
        bytes=release.size,
        tensors=len(release.parts),
        tensor_bytes=sum(part.nbytes for _, _, part in release.parts.values()),
        rank_bytes=release.rank_size,
        largest_file=max(files, key=lambda file: file.bytes),
        files=files,
        companions=sorted([*release.documents.written, *release.documents.copied]),
        sequences=[SequenceSummary(context=n, bytes=b) for n, b in caches.sizes.items()],
        cards=_cards(plan, release, request, caches),
        hubs={hub: hub_problems(release, (hub,)) for hub in file_limits()},
        stacks=judge_stacks(release, request.chips),
    )


def _cards(plan: Plan, release: ReleasePlan, request: ConversionRequest, caches: SequenceCaches) -> list[CardSummary]:
    if release.layout is None:
        return []
    asked = {one.chip.id for one in request.chips if one.target == release.target}
    cards = []
    chips = load_chips().values()
    fits = card_fits(plan.source, release.target, [chip.memory_gib << 30 for chip in chips])
    for chip, fit in zip(chips, fits, strict=True):
        left = max(0, fit.memory - fit.weights - RESERVE_BYTES)
        cards.append(
            CardSummary(
                chip=chip.id,
                asked=chip.id in asked,
                hardware={"bf16": True, "fp8": chip.fp8, "native": chip.fp4}[
                    release.target.dtype
                ],  # those of mp layouts
                card_bytes=fit.memory,
                weight_bytes=fit.weights,
                fits=fit.fits,
                smallest_mp=fit.smallest_mp,
                cards_per_node=chip.cards_per_node,
                nodes=-(-release.layout.mp // chip.cards_per_node),
                cards=release.layout.mp,
                left_bytes=left,
                context=caches.longest(left),
                fit=[left // nbytes for nbytes in caches.sizes.values()],
            )
        )
    return sorted(cards, key=lambda card: not card.asked)
