"""`ConversionRequest`: what a command line asks for: a recipe or a bare checkpoint, and the releases to make of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

from flagrelease.convert.planning.collector import paused_collector
from flagrelease.convert.planning.fit import RESERVE_BYTES, rank_bytes, smallest_mp
from flagrelease.convert.planning.layouts import tensor_parallel
from flagrelease.convert.planning.plan import Provenance
from flagrelease.convert.planning.target import Target, parse_target
from flagrelease.errors import UsageError
from flagrelease.model.families import family_of, has_known_shape
from flagrelease.records.convert_spec import ConvertSpec, EngramTables
from flagrelease.records.manifest import Drafts, OGroups
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.hub.address import HubPath
from flagrelease.source.hub.opening import files_at
from flagrelease.source.source import Source, read_source

if TYPE_CHECKING:
    from flagrelease.chips.table import Chip
    from flagrelease.records.chip_releases import ChipRelease
    from flagrelease.records.recipe import Recipe

Place = TypeVar("Place", bound=PurePath)


@dataclass(frozen=True, slots=True)
class ChipTarget:
    """One release of one chip. `stack` is the id of the serving stack that a recipe makes it for, `repo` the repository
    that the recipe publishes it in."""

    chip: Chip
    target: Target
    stack: str | None = None
    repo: str | None = None


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """Everything a plan needs, and the chips it is for.

    Attributes:
        targets: each release once, however many chips get it.
        chips: the releases of the chips; empty if only targets were named.
        hubs: hubs that the releases must fit.
        notes: where the releases of each chip come from, as sentences.
    """

    source: Source
    targets: tuple[Target, ...]
    chips: tuple[ChipTarget, ...]
    options: ConvertSpec
    provenance: Provenance
    hubs: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def repositories(self) -> dict[Target, str]:
        """Where the recipe publishes each release; of one that several chips get, the first one's repository."""
        return {one.target: one.repo for one in reversed(self.chips) if one.repo is not None}


@paused_collector()
def make_request(
    source: PurePath,
    checkpoint: PurePath | None,
    targets: Sequence[str],
    chips: Sequence[str],
    o_groups: OGroups | None,
    cards: int | None = None,
    drafts: Drafts | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> ConversionRequest:
    """Resolve the arguments of `plan` and `convert`.

    A recipe without targets or chips means everything in it. A chip, as `mthreads`, means all its releases in the
    recipe; `mthreads:fp8-hf` is one of them. A chip asked of a bare checkpoint gets what the shipped recipe for a model
    of these dimensions says, its mp releases cut for `cards` cards if that is given. Where no shipped recipe has the
    chip, it gets the format that the chip table names and the fewest ranks that fit its cards.
    `told(done, total)` is called with the headers read.

    Raises:
        UsageError: nothing to make, an unknown chip, a chip that is not in the recipe, a recipe without a checkpoint,
            a number of cards that the weights do not fit.
        CheckpointError: the checkpoint is not what it says.
    """
    known = _known(chips)
    named = [parse_target(text, o_groups or "shared", drafts or "keep") for text in targets]
    if not isinstance(source, Path) or source.is_dir():
        if checkpoint is not None:
            raise UsageError("--checkpoint belongs to a recipe; SOURCE is a checkpoint already")
        if not known and not named:
            raise UsageError(f"{source} is a checkpoint: say what to make of it, --target bf16:mp8 or --chip mthreads")
        if cards is not None and not known:
            raise UsageError("--cards needs --chip; a --target says its number of ranks itself, as in bf16:mp8")
        understood = read_source(files_at(source), told)
        found = [one for text in chips for one in _for_chip(text, understood, o_groups, drafts, cards)]
        wanted = tuple({(one.chip.id, one.target): one for one, _ in found}.values())
        notes = tuple(dict.fromkeys(note for _, note in found))
        where = _where(understood.files)
        return ConversionRequest(understood, _unique(wanted, named), wanted, ConvertSpec(), where, (), notes)
    from flagrelease.records.recipe import read_recipe

    recipe = read_recipe(source)
    if cards is not None:
        raise UsageError(f"--cards is for a checkpoint folder; {source} says the layout of each chip itself")
    chosen = () if named and not known else recipe.chosen(chips)
    engram = recipe.convert.engram_tables
    named = [replace(one, engram=engram) for one in named]
    wanted = tuple(_in_recipe(one, o_groups, drafts, engram) for one in chosen)
    place = at_revision(recipe, source, checkpoint_of(recipe, source, checkpoint))
    understood = read_source(files_at(place), told)
    _require_model(recipe, source, understood)
    return ConversionRequest(
        understood, _unique(wanted, named), wanted, recipe.convert, _provenance(recipe), recipe.hubs
    )


def _known(chips: Sequence[str]) -> list[Chip]:
    if not chips:
        return []
    from flagrelease.records.chip_releases import split_choice  # the chip table

    return [split_choice(text)[0] for text in chips]


def _unique(wanted: Iterable[ChipTarget], named: list[Target]) -> tuple[Target, ...]:
    return tuple(dict.fromkeys([*(one.target for one in wanted), *named]))


def _require_model(recipe: Recipe, path: Path, source: Source) -> None:
    """Refuse a checkpoint of another shape: the releases would name the recipe's model as what they come from."""
    found = family_of(source.config).published(source.config)
    if has_known_shape(recipe.model) and recipe.model not in found:
        raise UsageError(
            f"{path}: this recipe is for {recipe.model}; the checkpoint {source.root} has the dimensions and draft "
            f"stages of {' or '.join(found) or 'another model'}"
        )


def at_revision(recipe: Recipe, path: Path, place: PurePath) -> PurePath:
    """`place` itself; of the repository that the recipe in the file `path` names, the recipe's revision.

    Raises:
        UsageError: the address is of that repository on Hugging Face, but of another revision than the recipe's.
    """
    source, (address, _, revision) = recipe.source, str(place).partition("@")
    if not isinstance(place, HubPath) or address != f"hf://{source.repo}":
        return place
    if revision not in ("", source.revision):
        raise UsageError(f"{path}: is for {source.repo} at {source.revision}; --checkpoint names {revision} of it")
    return HubPath(f"{address}@{source.revision}")


def _where(files: CheckpointFiles) -> Provenance:
    """Of a bare checkpoint: its repository and revision, if it is one of a hub."""
    if files.folder is not None:
        return Provenance()
    from flagrelease.source.hub.files import HubFiles

    return Provenance(repo=files.repo, revision=files.revision) if isinstance(files, HubFiles) else Provenance()


def checkpoint_of(recipe: Recipe, path: Path, checkpoint: Place | None) -> Place | Path:
    """Where the checkpoint is: `checkpoint`, or the folder that the recipe in the file `path` names.

    Raises:
        UsageError: neither names one.
    """
    if checkpoint is not None:
        return checkpoint
    if recipe.source.path is None:
        raise UsageError(
            f"{path}: names {recipe.source.repo}@{recipe.source.revision[:12]}, but no folder on this machine; "
            f"download it and pass --checkpoint FOLDER, or read it there: --checkpoint hf://{recipe.source.repo}"
        )
    return Path(os.path.normpath(path.parent / recipe.source.path))


def _in_recipe(
    one: ChipRelease, o_groups: OGroups | None, drafts: Drafts | None, engram: EngramTables = "decode"
) -> ChipTarget:
    spec = one.spec
    target = parse_target(spec.target, o_groups or spec.o_groups, drafts or spec.drafts)
    return ChipTarget(one.chip, replace(target, engram=engram), spec.stack, one.repo)


def _for_chip(
    text: str, source: Source, o_groups: OGroups | None, drafts: Drafts | None, cards: int | None
) -> Iterator[tuple[ChipTarget, str]]:
    """What a chip gets of a bare checkpoint, and why, as sentences."""
    from flagrelease.records.chip_releases import split_choice
    from flagrelease.records.shipped import shipped_recipe

    chip, release = split_choice(text)
    model = next(iter(family_of(source.config).published(source.config)), None)
    recipe = None if model is None else shipped_recipe(model)
    if recipe is not None and chip.id in recipe.releases:
        why = f"as in the recipe shipped for {model}"
        chosen = [_in_recipe(one, o_groups, drafts) for one in recipe.chosen([text])]
        if cards is not None and all(one.target.mp is None for one in chosen):
            raise UsageError(f"--cards {cards}: {text} has no release that is cut for cards, only whole tensors (hf)")
    else:
        if release is not None:
            raise UsageError(f"--chip {text}: no shipped recipe has this model on this chip; ask for --target")
        why = "no shipped recipe has this model on this chip; its usual numbers, on the fewest cards that hold them"
        chosen = (
            [ChipTarget(chip, _fewest(chip, source, o_groups, drafts))]
            if cards is None
            else [ChipTarget(chip, Target(chip.release_dtype, cards, o_groups or "shared", drafts or "keep"))]
        )
    for one in chosen:
        if cards is not None and one.target.mp is not None:
            cut = _cut_for(cards, chip, one.target, source)
            yield replace(one, target=cut), f"{chip.id}: {cut}, cut for the number of cards that was asked for"
        else:
            made_for = "" if one.stack is None else f" for {one.stack}"
            yield one, f"{chip.id}: {one.target}{made_for}, {why}"


def _fewest(chip: Chip, source: Source, o_groups: OGroups | None, drafts: Drafts | None) -> Target:
    target = Target(chip.release_dtype, None, o_groups or "shared", drafts or "keep")
    mp = smallest_mp(source, target, chip.memory_gib << 30)
    if mp is None:
        raise UsageError(f"no number of ranks that this model allows fits {chip.id} cards of {chip.memory_gib} GiB")
    return replace(target, mp=mp)


def _cut_for(cards: int, chip: Chip, target: Target, source: Source) -> Target:
    chosen, memory = replace(target, mp=cards), chip.memory_gib << 30
    tensor_parallel(source.config, cards, target.o_groups)
    if (weights := rank_bytes(source, chosen)) + RESERVE_BYTES > memory:
        least = smallest_mp(source, target, memory)
        raise UsageError(
            f"--cards {cards}: each would hold {weights / 2**30:.1f} GiB of weights; a card of {chip.id} has "
            f"{chip.memory_gib} GiB, of which {RESERVE_BYTES >> 30} stay free; "
            + ("no number of cards is enough" if least is None else f"{least} cards are enough")
        )
    return chosen


def _provenance(recipe: Recipe | None) -> Provenance:
    if recipe is None:
        return Provenance()
    source = recipe.source
    return Provenance(recipe.model, source.repo, source.revision, source.license, recipe.document())
