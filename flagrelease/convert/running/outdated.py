"""What a folder holds of a release that is planned now: all of it, a part, nothing, or something else; and why.

A release outlives the recipe that it was made by: where another chip of the recipe changed, it is still what the plan
would make. So its plan is compared with today's under the records that its own manifest holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flagrelease import __version__
from flagrelease.convert.planning.plan import Plan, Provenance, ReleasePlan
from flagrelease.convert.running.journal import WORK_FOLDER, binding_of
from flagrelease.durable.folder import BEGUN_NAME, Begun
from flagrelease.durable.log import differing
from flagrelease.records.attachment import without_effect
from flagrelease.records.changes import changes, in_a_sentence
from flagrelease.records.manifest import MANIFEST_NAME, Manifest, TargetRecord, parse_manifest, read_manifest_bytes
from flagrelease.records.recipe import Recipe
from flagrelease.records.source_identity import identity_of_record


@dataclass(frozen=True, slots=True)
class Held:
    """What there is.

    Attributes:
        state: `finished`: what the plan would make; `same-bytes`: so are its files, but its manifest tells of another
            recipe; `outdated`: something else that flagrelease made, finished or not; `open`: nothing, or a part of it.
        why: in words, why it is not finished.
        manifest: of a finished release of whatever plan.
    """

    state: Literal["finished", "same-bytes", "outdated", "open"]
    why: str = ""
    manifest: Manifest | None = None


def look(folder: Path, plan: Plan, release: ReleasePlan, chips: Sequence[str]) -> Held:
    """Compare what is in `folder` with what `release` would put there. Reads the manifest and looks at sizes.

    Args:
        chips: that get the release: what the recipe says of others does not count.

    Raises:
        VerificationError: a manifest that breaks its schema, or is too old to say what it was made of.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return _look_at_unfinished(folder, plan, release)
    manifest = parse_manifest(read_manifest_bytes(folder), str(folder / MANIFEST_NAME))
    made_of = identity_of_record(manifest.source, folder / MANIFEST_NAME)
    if (other := made_of.difference(plan.source.identity)) is not None:
        return Held("outdated", f"the checkpoint is another one ({other})", manifest)
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return Held("outdated", f"{file.path} is missing or has another size", manifest)
    if manifest.plan == release.digest:
        return Held("finished", manifest=manifest)
    return _look_at_records(plan, release, manifest, chips)


def _look_at_unfinished(folder: Path, plan: Plan, release: ReleasePlan) -> Held:
    path = folder / WORK_FOLDER / BEGUN_NAME
    if not path.is_file():
        return Held("open", "there is no release yet")
    try:
        begun = Begun.model_validate_json(path.read_bytes())
    except ValidationError:
        return Held("outdated", "what an unfinished conversion left is damaged or of another version")
    if differs := differing(begun.binding, binding_of(plan, release)):
        return Held("outdated", f"an unfinished conversion was begun for {differs}")
    return Held("open", "its conversion was interrupted")


def _look_at_records(plan: Plan, release: ReleasePlan, manifest: Manifest, chips: Sequence[str]) -> Held:
    """Of a complete release of this very checkpoint, under another version or recipe."""
    if manifest.tool.version != __version__:
        return Held("outdated", f"flagrelease {manifest.tool.version} made it, this is {__version__}", manifest)
    source = manifest.source
    then = Provenance(manifest.model, source.repo, source.revision, source.license, manifest.recipe)
    options = plan.options.model_dump(mode="json")
    asked, used = options, options | manifest.options
    effects = [
        key for key in asked if asked[key] != used[key] and not without_effect(manifest, key, asked[key], used[key])
    ]
    if effects:
        found = changes({key: used[key] for key in effects}, {key: asked[key] for key in effects}, "convert")
        return Held("outdated", f"the recipe changed ({in_a_sentence(found)})", manifest)
    if release.digest_as(plan.source, manifest.tool.version, manifest.options, then) != manifest.plan:
        return Held(
            "outdated", "other files are planned now: the source's small files or the release changed", manifest
        )
    now = plan.provenance.recipe
    before = None if manifest.recipe is None else _said(manifest.recipe, chips, manifest.target)
    after = None if now is None else _said(now, chips, manifest.target)
    if before == after:
        return Held("finished", manifest=manifest)
    said = in_a_sentence(changes(before or {}, after or {}))
    return Held("same-bytes", f"the recipe says something else of it ({said})", manifest)


def _said(document: dict[str, Any], chips: Sequence[str], target: TargetRecord) -> dict[str, Any]:
    """What a recipe says of one release for these chips, as far as it goes into cards and statements."""
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError:
        return {"recipe": "one that this version does not read"}
    whole = recipe.document()
    found = {key: whole[key] for key in ("model", "languages", "source", "convert")}
    own = {chip: next((one for one in recipe.releases.get(chip, ()) if one.is_of(target)), None) for chip in chips}
    return found | {
        "releases": {chip: one and one.model_dump(mode="json", exclude={"repo"}) for chip, one in own.items()}
    }
