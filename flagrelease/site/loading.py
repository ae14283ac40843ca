"""How a release is started on a chip, stack by stack, and its card: both from records, as publishing writes them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from flagrelease.diff.operand import Operand
from flagrelease.errors import FlagReleaseError
from flagrelease.publish.card import make_card
from flagrelease.publish.hubs.names import REPORT_NAME
from flagrelease.publish.hubs.registry import HUBS, find_licence
from flagrelease.publish.records import Records
from flagrelease.publish.serving import Served, command, judge_stacks
from flagrelease.records.chip_releases import ChipRelease
from flagrelease.records.manifest import read_manifest_bytes
from flagrelease.records.recipe import Recipe
from flagrelease.records.report import parse_report
from flagrelease.site.validation import ChipState


@dataclass(frozen=True, slots=True)
class StackStart:
    """How one stack loads the release.

    Attributes:
        verdict: `loads`, `loads with flags`, `refused`, `silently wrong`, `unknown`, or `made for it` for the engine.
        why: the reasons, in sentences.
        commands: lines of a shell; empty where nothing is known to start it.
    """

    stack: str
    version: str
    verdict: str
    why: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """What a chip needs to run a release.

    Attributes:
        cards: how many of which product, on how many nodes.
        card: the card that publishing would write; None without a report that passed.
        trouble: why nothing can be said.
    """

    chip: str
    cards: str
    stacks: tuple[StackStart, ...]
    card: str | None
    trouble: str | None


def start(wanted: ChipRelease, operand: Operand, recipe: Recipe, state: ChipState) -> Start:
    """How `wanted`, which is the release of `operand`, is started. What records lack is said, not raised."""
    chip = wanted.chip.id
    try:
        records = _records(wanted, operand, recipe, state)
        stacks = judge_stacks(records)
        hub = next((hub for hub in HUBS if hub.name in recipe.hubs), HUBS[0])
        card = None if records.report is None else make_card(records, hub, wanted.repo).decode()
    except FlagReleaseError as error:
        return Start(chip, "", (), None, str(error).replace(f"{operand.folder}/", ""))
    cards = f"{records.cards} x {records.product.name} ({records.product.memory_gib} GiB)"
    nodes = "one node" if records.nodes == 1 else f"{records.nodes} nodes of {records.product.cards_per_node}"
    starts = (_engine(records), *(_stack(records, one) for one in stacks))
    return Start(chip, f"{cards}, {nodes}", starts, card, None)


def _records(wanted: ChipRelease, operand: Operand, recipe: Recipe, state: ChipState) -> Records:
    """The records of a publication; a report that is stale or did not pass is no part of them."""
    assert operand.folder is not None
    content = state.report.read_bytes() if state.state == "pass" and state.report is not None else None
    return Records(
        release=operand.folder,
        manifest=operand.manifest,
        manifest_bytes=read_manifest_bytes(operand.folder),
        recipe=recipe,
        chip=wanted.chip,
        licence=find_licence(recipe.source.license),
        report=None if content is None else parse_report(content, REPORT_NAME),
        report_bytes=content,
    )


def _engine(records: Records) -> StackStart:
    """flagrelease's own engine, which loads every release of this project."""
    folder = shlex.quote(records.release.name)
    if records.nodes == 1:
        lines = (f"flagrelease serve {folder}",)
    else:
        ranks = f"--nnodes {records.nodes} --nproc-per-node {records.product.cards_per_node}"
        meeting = "--rdzv-backend c10d --rdzv-endpoint HOST:29500"
        lines = (f"torchrun {ranks} {meeting} -m flagrelease serve {folder}   # on each node; HOST is node 0",)
    why = "The engine of this project, which the validation ran with." if records.report is not None else ""
    version = records.manifest.tool.version
    return StackStart("flagrelease", version, "made for it", (why,) if why else (), lines)


def _stack(records: Records, one: Served) -> StackStart:
    lines = tuple(command(records, one)) if one.loads and one.launch is not None else ()
    named = ("The recipe makes the release for this stack.",) if one.stack.id == records.wanted.spec.stack else ()
    return StackStart(one.stack.title, one.stack.version, one.judgement.verdict, (*named, *one.judgement.why), lines)
