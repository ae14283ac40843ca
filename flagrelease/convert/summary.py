"""`Summary`: a plan in numbers that people and scripts act on: files, bytes, memory, disk, cards, hubs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from flagrelease.chips.table import load_chips
from flagrelease.convert.fit import card_fits, hub_problems
from flagrelease.convert.memory import memory_bound
from flagrelease.convert.plan import Plan, ReleasePlan
from flagrelease.convert.request import ConversionRequest
from flagrelease.errors import UsageError
from flagrelease.publish.hubs.hub import HUB_FILE_LIMITS
from flagrelease.records.manifest import OGroups


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class CardSummary(_Record):
    """One release on the cards of one chip.

    Attributes:
        asked: whether the release is for this chip.
        hardware: whether the chip computes with the release's numbers; null if nobody has said.
        smallest_mp: the fewest ranks whose weights fit, null if none do.
    """

    chip: str
    asked: bool
    hardware: bool | None
    card_bytes: int
    weight_bytes: int
    fits: bool
    smallest_mp: int | None
    cards_per_node: int


class FileSummary(_Record):
    """One tensor file."""

    path: str
    bytes: int


class ReleaseSummary(_Record):
    """One release."""

    folder: str
    dtype: str
    layout: str
    o_groups: OGroups | None
    plan: str
    bytes: int
    tensors: int
    tensor_bytes: int
    rank_bytes: int | None
    largest_file: FileSummary
    files: list[FileSummary]
    companions: list[str]
    cards: list[CardSummary]
    hubs: dict[str, list[str]]


class Summary(_Record):
    """What `flagrelease plan` reports. `hub_problems` are those of the hubs the recipe names; they refuse the plan."""

    source: str
    source_identity: str
    source_tensors: int
    source_bytes: int
    bytes_to_read: int
    bytes_to_write: int
    peak_memory_bytes: int
    peak_disk_bytes: int
    workers: int
    releases: list[ReleaseSummary]
    hub_problems: list[str]

    def require_hubs(self) -> None:
        """Refuse a plan that a hub of the recipe cannot hold.

        Raises:
            UsageError: the first file, with the limit and the key of the recipe to set.
        """
        if self.hub_problems:
            raise UsageError(self.hub_problems[0])


def summarise(plan: Plan, request: ConversionRequest, workers: int) -> Summary:
    """The numbers of `plan`. Chips that were asked for come first; the others of the table say whether they fit."""
    return Summary(
        source=str(plan.source.folder),
        source_identity=plan.source.index.identity(),
        source_tensors=len(plan.source.index.tensors),
        source_bytes=plan.source.index.total_size,
        bytes_to_read=plan.bytes_to_read,
        bytes_to_write=plan.bytes_to_write,
        peak_memory_bytes=memory_bound(plan, workers),
        peak_disk_bytes=plan.bytes_to_write,
        workers=workers,
        releases=[_release(plan, release, request) for release in plan.releases],
        hub_problems=[problem for release in plan.releases for problem in hub_problems(release, request.hubs)],
    )


def _release(plan: Plan, release: ReleasePlan, request: ConversionRequest) -> ReleaseSummary:
    files = [FileSummary(path=file.name, bytes=file.size) for file in release.files]
    return ReleaseSummary(
        folder=release.target.folder,
        dtype=release.target.dtype,
        layout=release.target.layout,
        o_groups=release.layout.o_groups if release.layout else None,
        plan=release.digest,
        bytes=release.size,
        tensors=len(release.parts),
        tensor_bytes=sum(part.nbytes for _, _, part in release.parts.values()),
        rank_bytes=release.rank_size,
        largest_file=max(files, key=lambda file: file.bytes),
        files=files,
        companions=sorted([*release.documents.written, *release.documents.copied]),
        cards=_cards(plan, release, request),
        hubs={hub: hub_problems(release, (hub,)) for hub in HUB_FILE_LIMITS},
    )


def _cards(plan: Plan, release: ReleasePlan, request: ConversionRequest) -> list[CardSummary]:
    if release.layout is None:
        return []
    asked = {chip for chip, target in request.chips.items() if target == release.target}
    cards = []
    chips = load_chips().values()
    fits = card_fits(plan.source, release.target, [chip.memory_gib << 30 for chip in chips])
    for chip, fit in zip(chips, fits, strict=True):
        cards.append(
            CardSummary(
                chip=chip.id,
                asked=chip.id in asked,
                hardware={"bf16": True, "fp8": chip.fp8, "native": chip.fp4}[release.target.dtype],
                card_bytes=fit.memory,
                weight_bytes=fit.weights,
                fits=fit.fits,
                smallest_mp=fit.smallest_mp,
                cards_per_node=chip.cards_per_node,
            )
        )
    return sorted(cards, key=lambda card: not card.asked)
