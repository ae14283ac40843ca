"""What the site says of a release, taken from its manifest, which is then let go: a large one takes 200 MB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flagrelease.diff.compare import layout_of, role_of
from flagrelease.diff.operand import Operand
from flagrelease.errors import VerificationError
from flagrelease.page.panel import Table
from flagrelease.publish.losses import by_kind, lossless
from flagrelease.records.attachment import parse_recipe
from flagrelease.records.chip_releases import ChipRelease
from flagrelease.records.manifest import FileRecord, Manifest
from flagrelease.records.recipe import Recipe

_KINDS = {
    "copied": "kept bit for bit",
    "exact": "decoded to BF16 without rounding",
    "rounded": "decoded to BF16 with rounding",
    "repacked": "held exactly by another quantised format",
    "lost": "not held exactly by the format",
}


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """A finished release.

    Attributes:
        name: in the whole site; `short` is the name of its folder.
        model: as the manifest names it, else the repository of its source, else the folder.
        wanted: what its recipe wants for which chip; empty without a recipe.
        recipe: None without one, or if it does not follow the schema.
        elements: (what happened, how many).
    """

    name: str
    short: str
    folder: Path
    manifest_sha256: str
    model: str
    format: str
    layout: str
    bytes: int
    tensor_bytes: int
    tensors: int
    files: tuple[FileRecord, ...]
    facts: tuple[tuple[str, str], ...]
    lossless: bool
    elements: tuple[tuple[str, int], ...]
    losses: Table
    wanted: tuple[ChipRelease, ...]
    recipe: Recipe | None

    @property
    def target(self) -> str:
        """`FORMAT-LAYOUT`."""
        return f"{self.format}-{self.layout}"


def release_facts(operand: Operand, name: str) -> ReleaseFacts:
    """Take what pages need from a manifest; `operand.folder` is the release's."""
    assert operand.folder is not None
    manifest, short = operand.manifest, operand.folder.name
    recipe = _recipe(manifest)
    return ReleaseFacts(
        name=name,
        short=short,
        folder=operand.folder,
        manifest_sha256=operand.manifest_sha256,
        model=manifest.model or manifest.source.repo or short,
        format=manifest.target.dtype,
        layout=layout_of(manifest),
        bytes=sum(file.size for file in manifest.files),
        tensor_bytes=sum(file.size for file in manifest.files if role_of(file.path) == "tensors"),
        tensors=len(manifest.tensors),
        files=manifest.files,
        facts=tuple(_facts(manifest, operand.manifest_sha256)),
        lossless=lossless(manifest),
        elements=tuple((_KINDS[kind], count) for kind, count in manifest.elements.model_dump().items() if count),
        losses=_losses(manifest),
        wanted=() if recipe is None else _wanted(recipe, manifest),
        recipe=recipe,
    )


def _recipe(manifest: Manifest) -> Recipe | None:
    if manifest.recipe is None:
        return None
    try:
        return parse_recipe(manifest.recipe, "manifest.json")
    except VerificationError:  # of a version of the schema that is no longer read; the page says so
        return None


def _wanted(recipe: Recipe, manifest: Manifest) -> tuple[ChipRelease, ...]:
    return tuple(one for one in recipe.chosen(()) if one.spec.is_of(manifest.target))


def _facts(manifest: Manifest, sha256: str) -> list[tuple[str, str]]:
    source, target = manifest.source, manifest.target
    stages = {name.split(".")[1] for name in manifest.tensors if name.startswith("mtp.") and name.count(".") > 1}
    held = "none" if not stages else f"{len(stages)} held"
    return [
        ("Manifest, SHA-256", sha256),
        ("Made by", f"{manifest.tool.name} {manifest.tool.version}, manifest schema {manifest.schema_version}"),
        ("Recipe", "none: a bare folder was converted" if manifest.recipe is None else "in the manifest"),
        ("Plan, digest", manifest.plan),
        ("O-groups", target.o_groups or "as the layout has them"),
        ("Draft stages", f"{held} ({target.drafts})"),
        ("Source", source.repo or "not recorded"),
        ("Source, revision", source.revision or "not recorded"),
        ("Source, licence", source.license or "not recorded"),
        ("Source, identity", source.identity),
        ("Source, config", source.config_sha256),
        ("Source, contents", source.contents_blake3 or "not in a manifest of schema 1"),
        ("Source files", f"{len(source.files):,} tensor files, {sum(file.size for file in source.files):,} bytes"),
        ("Source, checked", source.checked_against),
    ]


def _losses(manifest: Manifest) -> Table:
    table = Table(("weights", ">weights of this kind", ">inexact elements", ">largest error", ">largest RMS error"))
    for kind, records in by_kind(manifest.losses).items():
        inexact = sum(one.elements - one.exact_elements for one in records)
        elements = sum(one.elements for one in records)
        table.rows.append(
            (
                kind,
                f"{len(records):,}",
                f"{inexact:,} of {elements:,}",
                f"{max(one.largest_error for one in records):.2e}",
                f"{max(one.rms_error for one in records):.2e}",
            )
        )
    return table
