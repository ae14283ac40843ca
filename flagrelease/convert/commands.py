"""The command line of conversion: inspect, plan, convert."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from flagrelease import console
from flagrelease.convert.disk.options import (
    DiskOption,
    HandOverCheckOption,
    HandOverOption,
    PrivateOption,
    RepoOption,
    ToOption,
)
from flagrelease.convert.options import (
    DeviceChoice,
    DeviceOption,
    DraftsChoice,
    DraftsOption,
    OGroupsChoice,
    OGroupsOption,
)
from flagrelease.convert.places import find_source
from flagrelease.convert.sharing.options import (
    ClusterOption,
    ExecutorChoice,
    ExecutorOption,
    MergeOption,
    PartOption,
    PartsOption,
    Sharing,
)
from flagrelease.records.named import complete_recipe
from flagrelease.source.hub.opening import place_of

if TYPE_CHECKING:
    from flagrelease.convert.planning.passes import DiskPlan
    from flagrelease.convert.planning.plan import Plan
    from flagrelease.convert.request import ConversionRequest
    from flagrelease.records.manifest import Drafts, OGroups


SourceArgument = Annotated[
    PurePath,
    typer.Argument(
        metavar="SOURCE",
        help="A recipe (YAML, or the name of a shipped one: flash), or a checkpoint: a folder, "
        "hf://OWNER/NAME@REVISION or modelscope://OWNER/NAME@TAG.",
        parser=find_source,
        autocompletion=complete_recipe,
        show_default=False,
    ),
]
CheckpointOption = Annotated[
    PurePath | None,
    typer.Option(
        "--checkpoint",
        metavar="DIR|ADDRESS",
        parser=place_of,
        help="With a recipe: the folder that you downloaded its checkpoint to, or its address on a hub as SOURCE has "
        "it, which is read there by ranges.",
    ),
]
TargetOption = Annotated[
    list[str],
    typer.Option(
        "--target",
        metavar="FORMAT:LAYOUT",
        help="A release to make: a format (bf16, fp8, native, int8, ...), then hf or mpN (N ranks). Can be repeated.",
    ),
]
ChipOption = Annotated[
    list[str],
    typer.Option(
        "--chip",
        metavar="CHIP[:FORMAT-LAYOUT]",
        help="Make the releases for this chip in the recipe, or in the recipe shipped for this model; mthreads:fp8-hf "
        "is one of them. Can be repeated.",
    ),
]
CardsOption = Annotated[
    int | None,
    typer.Option("--cards", min=1, metavar="N", help="With --chip and a checkpoint folder: cut for N cards instead."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Threads that decode. Default: one a processor. They change no byte."),
]
DigestsOption = Annotated[
    Path | None,
    typer.Option(
        "--source-digests",
        metavar="FILE",
        help="SHA-256 of files of the checkpoint, as sha256sum writes them. convert hashes those files and refuses a "
        "damaged one.",
    ),
]
_PLAN_EXAMPLES = """\
Example: flagrelease plan recipes/deepseek-v4-flash.yaml --checkpoint DeepSeek-V4-Flash/

Example: flagrelease plan DeepSeek-V4-Flash/ --chip ascend --cards 32

Example: flagrelease plan DeepSeek-V4-Pro/ --target bf16:hf --target fp8:mp8 --disk 500GB
"""
_CONVERT_EXAMPLES = """\
Example: flagrelease convert recipes/deepseek-v4-flash.yaml --checkpoint DeepSeek-V4-Flash/ --out releases/

Example: flagrelease convert DeepSeek-V4-Flash/ --target bf16:mp16 --target fp8:mp8 --out releases/

Example: flagrelease convert pro --checkpoint DeepSeek-V4-Pro/ --out work/ --disk 500GB --to hf

Example: flagrelease convert flash --checkpoint DeepSeek-V4-Flash/ --part 3/8 --out releases/
"""


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: flagrelease inspect DeepSeek-V4-Flash/")(inspect)
    app.command(epilog=_PLAN_EXAMPLES)(plan)
    app.command(epilog=_CONVERT_EXAMPLES)(convert)


def inspect(
    checkpoint: Annotated[
        PurePath,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder, hf://OWNER/NAME@REVISION or modelscope://OWNER/NAME@TAG.",
            parser=place_of,
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint holds, and where its config, index and headers disagree (exit code 3)."""
    from flagrelease.convert.display import show_inspection
    from flagrelease.convert.inspect import inspect_checkpoint
    from flagrelease.source.hub.opening import files_at

    with console.counted(f"reading the headers in {checkpoint}") as counter:
        inspection = inspect_checkpoint(files_at(checkpoint), partial(counter, "headers read"))
    console.show(as_json, inspection.model_dump(mode="json"), lambda: show_inspection(inspection))
    if inspection.problems:
        raise typer.Exit(3)


def plan(
    source: SourceArgument,
    checkpoint: CheckpointOption = None,
    target: TargetOption = [],  # noqa: B006 - typer reads it, nobody writes it
    chip: ChipOption = [],  # noqa: B006
    cards: CardsOption = None,
    o_groups: OGroupsOption = None,
    drafts: DraftsOption = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where convert would write: its free space is compared.")
    ] = Path(),
    disk: DiskOption = None,
    parts: PartsOption = None,
    workers: WorkersOption = None,
    source_digests: DigestsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what convert would write, to the byte: files, memory, disk, cards, hub limits. Reads headers only."""
    from flagrelease.convert.claims import gather_claims
    from flagrelease.convert.display import show_plan
    from flagrelease.convert.planning.memory import default_workers
    from flagrelease.convert.sharing.shares import divide
    from flagrelease.convert.summary import summarise

    with _counted(source, checkpoint) as counter:
        made, request, passes = _planned(source, checkpoint, target, chip, cards, o_groups, drafts, disk, counter)
        shares = None if parts is None else divide(made, parts)
        summary = summarise(made, request, workers or default_workers(), out, passes, shares)
    gather_claims(request, source_digests, ask=False)
    console.show(as_json, summary.model_dump(mode="json"), lambda: show_plan(summary))
    summary.require_takers()


def convert(
    source: SourceArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Each release is written to DIR/FORMAT-LAYOUT/.")],
    checkpoint: CheckpointOption = None,
    target: TargetOption = [],  # noqa: B006
    chip: ChipOption = [],  # noqa: B006
    cards: CardsOption = None,
    o_groups: OGroupsOption = None,
    drafts: DraftsOption = None,
    disk: DiskOption = None,
    to: ToOption = None,
    repo: RepoOption = None,
    private: PrivateOption = False,
    hand_over: HandOverOption = None,
    hand_over_check: HandOverCheckOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = DeviceChoice.AUTO,
    source_digests: DigestsOption = None,
    part: PartOption = None,
    merge: MergeOption = False,
    executor: ExecutorOption = ExecutorChoice.LOCAL,
    parts: PartsOption = None,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Dequantise, repack and cut a checkpoint into releases, in one pass.

    After an interruption, run the same command again: it resumes.
    """
    from flagrelease.convert.claims import gather_claims
    from flagrelease.convert.disk.chosen import HandOverChoice
    from flagrelease.convert.display import releases_document, remark_lines, show_releases
    from flagrelease.convert.planning.memory import default_workers
    from flagrelease.convert.recheck import check_finished
    from flagrelease.convert.running.conversion import choose_lookup
    from flagrelease.convert.running.conversion import convert as run_conversion
    from flagrelease.convert.takers import require_takers
    from flagrelease.records.manifest import MANIFEST_NAME

    sharing = Sharing.of(part, merge, executor, parts, cluster)
    sharing.require_alone(disk, source_digests, device.value)
    choice = HandOverChoice(to, repo, private, hand_over, hand_over_check)
    choice.require_with(disk)
    lookup = choose_lookup(device.value)
    with _counted(source, checkpoint) as counter:
        made, request, passes = _planned(source, checkpoint, target, chip, cards, o_groups, drafts, disk, counter)
    require_takers(made, request)
    threads = workers or default_workers()
    for line in remark_lines(made.source.companions.left_out, made.source.index.remarks):
        console.say(line)
    places = None if passes is None else choice.places(made, request.repositories)
    claims = {} if merge else gather_claims(request, source_digests, ask=True)  # a merge compares no source
    if passes is not None and places is not None:
        from flagrelease.convert.disk.told import convert_and_say, show_handed_over

        made_there = convert_and_say(made, passes, out, places, threads, lookup, claims)
        console.show(as_json, made_there, lambda: show_handed_over(made_there))
        return
    if sharing.part is not None:
        from flagrelease.convert.sharing.commands import make_part

        make_part(made, sharing.part, out, threads, lookup, claims, as_json)
        return
    folders = [release.target.folder for release in made.releases]
    before = [folder for folder in folders if (out / folder / MANIFEST_NAME).is_file()]
    waiting = sum(release.size for release in made.releases if release.target.folder not in before)
    if merge:
        from flagrelease.convert.sharing.commands import merge_shown

        manifests = merge_shown(made, out, threads)
    elif sharing.cluster is not None:
        from flagrelease.convert.sharing.commands import convert_in_cluster

        manifests = convert_in_cluster(made, out, sharing.cluster, parts, workers, claims)
    else:
        with console.progress("convert", made.bytes_to_write) as report:
            manifests = run_conversion(
                made,
                out,
                workers=threads,
                lookup=lookup,
                claims=claims,
                progress=console.saying_where_it_resumes(report.to, made.bytes_to_write - waiting),
            )
        check_finished(made, manifests, before, claims, threads)
    document, named = releases_document(out, manifests, before), request.provenance.recipe is not None
    console.show(as_json, document, lambda: show_releases(out, manifests, before, named))


def _counted(source: PurePath, checkpoint: PurePath | None) -> AbstractContextManager[console.Counter]:
    return console.counted(f"reading the headers of {checkpoint or source}, placing every byte")


def _planned(
    source: PurePath,
    checkpoint: PurePath | None,
    target: list[str],
    chip: list[str],
    cards: int | None,
    o_groups: OGroupsChoice | None,
    drafts: DraftsChoice | None,
    disk: str | None,
    counter: console.Counter,
) -> tuple[Plan, ConversionRequest, DiskPlan | None]:
    from flagrelease.convert.disk.options import parse_budget
    from flagrelease.convert.planning.plan import make_plan
    from flagrelease.convert.request import make_request

    budget = None if disk is None else parse_budget(disk)
    cut: OGroups | None = None if o_groups is None else o_groups.value
    stages: Drafts | None = None if drafts is None else drafts.value
    request = make_request(source, checkpoint, target, chip, cut, cards, stages, partial(counter, "headers read"))
    placed = partial(counter, "releases planned")
    made = make_plan(request.source, request.targets, request.options, request.provenance, placed)
    if budget is None:
        return made, request, None
    from flagrelease.convert.planning.passes import plan_passes

    return made, request, plan_passes(made, budget)
