"""The recipe that a publication follows: the manifest's own, or one attached to a release converted without a recipe.

A conversion by `--target` or `--chip` records no recipe, so nothing says which model, source revision and licence the
release has. A recipe may be attached later if it gives the same bytes: the same layout, format and options. That the
checkpoint is the revision that the recipe names is the publisher's word, as it is in a conversion from a recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from flagrelease.errors import UsageError, VerificationError, first_problem
from flagrelease.formats.formats import FP8_CHANNEL, INT8
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.manifest import Manifest
from flagrelease.records.recipe import Recipe


def require_recipe(manifest: Manifest, chip: str, attached: Recipe | None) -> Recipe:
    """The recipe of a publication for `chip`.

    Raises:
        UsageError: there is none, or it does not give this release for this chip.
        VerificationError: the one in the manifest does not follow the schema.
    """
    if manifest.recipe is None and attached is None:
        raise UsageError(
            "manifest.json: recipe is null, so nothing names the model, its revision and its licence. Attach the "
            "recipe that gives the same bytes (--recipe FILE), or convert from a recipe"
        )
    own = None if manifest.recipe is None else parse_recipe(manifest.recipe, "manifest.json")
    if own is not None and attached is not None and attached.document() != own.document():
        raise UsageError("--recipe: the release was converted from another recipe, which is in its manifest.json")
    recipe = own or attached
    assert recipe is not None
    if problems := list(disagreements(recipe, manifest, chip)):
        raise UsageError("; ".join(problems))
    return recipe


def parse_recipe(document: object, name: str) -> Recipe:
    """Check the recipe inside a manifest or a statement; `name` is for the message.

    Raises:
        VerificationError: it does not follow the schema.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise VerificationError(f"{name}: recipe.{first_problem(error)}") from error


def disagreements(recipe: Recipe, manifest: Manifest, chip: str) -> Iterator[str]:
    """Why a conversion by `recipe` for `chip` would have other bytes than this release, as sentences."""
    if chip not in recipe.releases:
        yield f"chip {chip!r} is not in the release's recipe; it has {', '.join(recipe.releases)}"
        return
    target, given = manifest.target, recipe.releases[chip]
    layout = "hf" if target.mp is None else f"mp{target.mp}"
    release = next((one for one in given if one.is_of(target)), None)
    if release is None:
        names = " and ".join(one.name for one in given)
        yield f"the recipe gives {chip} {names}; this release is {target.dtype}-{layout}"
    else:
        if target.o_groups not in (None, release.o_groups):
            yield f"the recipe gives {chip} o_groups {release.o_groups}; this release has {target.o_groups}"
        if target.drafts != release.drafts:
            yield f"the recipe gives {chip} drafts {release.drafts}; this release has {target.drafts}"
    options = recipe.convert.model_dump(mode="json")
    recorded = ConvertSpec().model_dump(mode="json") | manifest.options  # an older release lacks newer options
    for key in sorted(options.keys() | recorded.keys()):
        asked, used = options.get(key), recorded.get(key)
        if asked != used and not without_effect(manifest, key, asked, used):
            yield f"the recipe has convert.{key} {asked}; this release was converted with {used}"
    for key, stated in (("repo", recipe.source.repo), ("revision", recipe.source.revision)):
        if getattr(manifest.source, key) not in (None, stated):
            yield f"the recipe's source.{key} is {stated}; this release has {getattr(manifest.source, key)}"


def without_effect(manifest: Manifest, key: str, asked: object, used: object) -> bool:
    """Whether an option of `convert` changes no byte of this release, so that a recipe may have another value of it."""
    mp = manifest.target.mp
    if key == "lossy_repack":
        return manifest.elements.lost == 0
    release = RELEASE_FORMATS[manifest.target.dtype]
    if key in ("int8_scale", "channel_scale"):
        return (INT8 if key == "int8_scale" else FP8_CHANNEL) not in (release.experts, release.linears)
    if key == "allow_zero_tensors" and isinstance(asked, list) and isinstance(used, list):
        return set(used) <= set(asked)  # it permits, and changes no byte
    if key != ("max_file_bytes" if mp is None else "rank_part_bytes"):
        return key in ("max_file_bytes", "rank_part_bytes")  # of the other layout
    # A limit on files that none of them meets: each rank is one file, and the hf layout has one.
    sizes = [file.size for file in manifest.files if file.path.endswith(".safetensors")]
    limits = [limit for limit in (asked, used) if isinstance(limit, int)]
    return len(sizes) == (mp or 1) and all(max(sizes) <= limit for limit in limits)
