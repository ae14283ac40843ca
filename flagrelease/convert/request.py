"""`ConversionRequest`: what a command line asks for: a recipe or a bare checkpoint, and the releases to make of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flagrelease.chips.table import Chip, get_chip
from flagrelease.convert.fit import smallest_mp
from flagrelease.convert.plan import Provenance
from flagrelease.convert.target import Target, parse_target
from flagrelease.errors import UsageError
from flagrelease.records.manifest import OGroups
from flagrelease.records.recipe import ConvertSpec, Recipe, read_recipe
from flagrelease.source.source import Source, read_source


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """Everything a plan needs, and the chips it is for.

    Attributes:
        chips: chip -> its release; empty if only targets were named.
        hubs: hubs that the releases must fit.
    """

    source: Source
    targets: tuple[Target, ...]
    chips: dict[str, Target]
    options: ConvertSpec
    provenance: Provenance
    hubs: tuple[str, ...]


def make_request(
    source: Path,
    checkpoint: Path | None,
    targets: Sequence[str],
    chips: Sequence[str],
    o_groups: OGroups | None,
) -> ConversionRequest:
    """Resolve the arguments of `plan` and `convert`.

    A recipe without targets or chips means all its chips. A chip asked of a bare checkpoint gets the numbers it is
    released with and the fewest ranks that fit its cards.

    Raises:
        UsageError: nothing to make, an unknown chip, a chip that is not in the recipe, a recipe without a checkpoint.
        CheckpointError: the checkpoint is not what it says.
    """
    if source.is_dir():
        if checkpoint is not None:
            raise UsageError("--checkpoint belongs to a recipe; SOURCE is a checkpoint already")
        recipe, folder = None, source
    else:
        recipe = read_recipe(source)
        folder = _checkpoint_of(recipe, source, checkpoint)
    understood = read_source(folder)
    wanted = {name: _for_chip(get_chip(name), recipe, understood, o_groups) for name in chips}
    named = [parse_target(text, o_groups or "shared") for text in targets]
    if recipe is not None and not targets and not chips:
        wanted = {name: _for_chip(get_chip(name), recipe, understood, o_groups) for name in recipe.releases}
    if not wanted and not named:
        raise UsageError(f"{source} is a checkpoint: say what to make of it, --target bf16:mp8 or --chip mthreads")
    return ConversionRequest(
        understood,
        tuple(dict.fromkeys([*wanted.values(), *named])),
        {get_chip(name).id: target for name, target in wanted.items()},
        recipe.convert if recipe else ConvertSpec(),
        _provenance(recipe),
        recipe.hubs if recipe else (),
    )


def _checkpoint_of(recipe: Recipe, path: Path, checkpoint: Path | None) -> Path:
    if checkpoint is not None:
        return checkpoint
    if recipe.source.path is None:
        raise UsageError(
            f"{path}: names {recipe.source.repo}@{recipe.source.revision[:12]}, but no folder on this machine; "
            f"download it and pass --checkpoint FOLDER"
        )
    return Path(os.path.normpath(path.parent / recipe.source.path))


def _for_chip(chip: Chip, recipe: Recipe | None, source: Source, o_groups: OGroups | None) -> Target:
    if recipe is not None:
        if chip.id not in recipe.releases:
            raise UsageError(f"chip {chip.id!r} is not in this recipe; it has {', '.join(recipe.releases)}")
        release = recipe.releases[chip.id]
        return parse_target(f"{release.dtype}:{release.layout}", o_groups or release.o_groups)
    target = Target(chip.release_dtype, 1, o_groups or "shared")
    mp = smallest_mp(source, target, chip.memory_gib << 30)
    if mp is None:
        raise UsageError(f"no number of ranks that this model allows fits {chip.id} cards of {chip.memory_gib} GiB")
    return Target(target.dtype, mp, target.o_groups)


def _provenance(recipe: Recipe | None) -> Provenance:
    if recipe is None:
        return Provenance()
    document = recipe.model_dump(mode="json", exclude={"validation"})  # how it is judged changes no byte of a release
    del document["source"]["path"]  # a fact of this machine
    source = recipe.source
    return Provenance(recipe.model, source.repo, source.revision, source.license, document)
