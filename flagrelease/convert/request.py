"""`ConversionRequest`: what a command line asks for: a recipe or a bare checkpoint, and the releases to make of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flagrelease.chips.table import Chip, get_chip
from flagrelease.convert.planning.fit import RESERVE_BYTES, rank_bytes, smallest_mp
from flagrelease.convert.planning.layouts import tensor_parallel
from flagrelease.convert.planning.plan import Provenance
from flagrelease.convert.planning.target import Target, parse_target
from flagrelease.errors import UsageError
from flagrelease.model.v4.published import published_name
from flagrelease.records.manifest import OGroups
from flagrelease.records.recipe import ConvertSpec, Recipe, read_recipe
from flagrelease.records.shipped import shipped_recipe
from flagrelease.source.source import Source, read_source


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """Everything a plan needs, and the chips it is for.

    Attributes:
        chips: chip -> its release; empty if only targets were named.
        hubs: hubs that the releases must fit.
        notes: where the release of each chip comes from, as sentences.
    """

    source: Source
    targets: tuple[Target, ...]
    chips: dict[str, Target]
    options: ConvertSpec
    provenance: Provenance
    hubs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def make_request(
    source: Path,
    checkpoint: Path | None,
    targets: Sequence[str],
    chips: Sequence[str],
    o_groups: OGroups | None,
    cards: int | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> ConversionRequest:
    """Resolve the arguments of `plan` and `convert`.

    A recipe without targets or chips means all its chips. A chip asked of a bare checkpoint gets what the shipped
    recipe for a model of these dimensions says, cut for `cards` cards if that is given. Where no shipped recipe has the
    chip, it gets the numbers that the chip table names and the fewest ranks that fit its cards.
    `told(done, total)` is called with the headers read.

    Raises:
        UsageError: nothing to make, an unknown chip, a chip that is not in the recipe, a recipe without a checkpoint,
            a number of cards that the weights do not fit.
        CheckpointError: the checkpoint is not what it says.
    """
    known = [get_chip(name) for name in chips]
    named = [parse_target(text, o_groups or "shared") for text in targets]
    if source.is_dir():
        if checkpoint is not None:
            raise UsageError("--checkpoint belongs to a recipe; SOURCE is a checkpoint already")
        if not known and not named:
            raise UsageError(f"{source} is a checkpoint: say what to make of it, --target bf16:mp8 or --chip mthreads")
        if cards is not None and not known:
            raise UsageError("--cards needs --chip; a --target says its number of ranks itself, as in bf16:mp8")
        understood = read_source(source, told)
        chosen = [_for_chip(chip, understood, o_groups, cards) for chip in known]
        wanted = {chip.id: target for chip, (target, _) in zip(known, chosen, strict=True)}
        notes = tuple(note for _, note in chosen)
        return ConversionRequest(understood, _unique(wanted, named), wanted, ConvertSpec(), Provenance(), (), notes)
    recipe = read_recipe(source)
    if cards is not None:
        raise UsageError(f"--cards is for a checkpoint folder; {source} says the layout of each chip itself")
    if not known and not named:
        known = [get_chip(name) for name in recipe.releases]
    wanted = {chip.id: _in_recipe(chip, recipe, o_groups) for chip in known}
    understood = read_source(_checkpoint_of(recipe, source, checkpoint), told)
    return ConversionRequest(
        understood, _unique(wanted, named), wanted, recipe.convert, _provenance(recipe), recipe.hubs
    )


def _unique(wanted: dict[str, Target], named: list[Target]) -> tuple[Target, ...]:
    return tuple(dict.fromkeys([*wanted.values(), *named]))


def _checkpoint_of(recipe: Recipe, path: Path, checkpoint: Path | None) -> Path:
    if checkpoint is not None:
        return checkpoint
    if recipe.source.path is None:
        raise UsageError(
            f"{path}: names {recipe.source.repo}@{recipe.source.revision[:12]}, but no folder on this machine; "
            f"download it and pass --checkpoint FOLDER"
        )
    return Path(os.path.normpath(path.parent / recipe.source.path))


def _in_recipe(chip: Chip, recipe: Recipe, o_groups: OGroups | None) -> Target:
    if chip.id not in recipe.releases:
        raise UsageError(f"chip {chip.id!r} is not in this recipe; it has {', '.join(recipe.releases)}")
    release = recipe.releases[chip.id]
    return parse_target(f"{release.dtype}:{release.layout}", o_groups or release.o_groups)


def _for_chip(chip: Chip, source: Source, o_groups: OGroups | None, cards: int | None) -> tuple[Target, str]:
    """What a chip gets of a bare checkpoint, and why, as a sentence."""
    model = published_name(source.config)
    recipe = None if model is None else shipped_recipe(model)
    if recipe is not None and chip.id in recipe.releases:
        target, why = _in_recipe(chip, recipe, o_groups), f"as in the recipe shipped for {model}"
    else:
        target = Target(chip.release_dtype, None, o_groups or "shared")
        why = "no shipped recipe has this model on this chip; its usual numbers, on the fewest cards that hold them"
    if cards is None and target.mp is not None:
        return target, f"{chip.id}: {target}, {why}"
    memory = chip.memory_gib << 30
    if cards is not None:
        chosen, why = replace(target, mp=cards), "cut for the number of cards that was asked for"
        tensor_parallel(source.config, cards, target.o_groups)
        if (weights := rank_bytes(source, chosen)) + RESERVE_BYTES > memory:
            least = smallest_mp(source, target, memory)
            raise UsageError(
                f"--cards {cards}: each would hold {weights / 2**30:.1f} GiB of weights; a card of {chip.id} has "
                f"{chip.memory_gib} GiB, of which {RESERVE_BYTES >> 30} stay free; "
                + ("no number of cards is enough" if least is None else f"{least} cards are enough")
            )
        return chosen, f"{chip.id}: {chosen}, {why}"
    mp = smallest_mp(source, target, memory)
    if mp is None:
        raise UsageError(f"no number of ranks that this model allows fits {chip.id} cards of {chip.memory_gib} GiB")
    return replace(target, mp=mp), f"{chip.id}: {replace(target, mp=mp)}, {why}"


def _provenance(recipe: Recipe | None) -> Provenance:
    if recipe is None:
        return Provenance()
    source = recipe.source
    return Provenance(recipe.model, source.repo, source.revision, source.license, recipe.document())
