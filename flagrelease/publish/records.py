"""The records a publication is made of, and nothing else: manifest, recipe, chip, report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.chips.launch import cards_for
from flagrelease.chips.table import CardProduct, Chip
from flagrelease.errors import VerificationError
from flagrelease.model.families import family_of_document
from flagrelease.model.family import Family
from flagrelease.publish.hubs.registry import find_licence
from flagrelease.records.attachment import require_recipe
from flagrelease.records.chip_releases import ChipRelease, releases_of
from flagrelease.records.manifest import MANIFEST_NAME, Manifest, TargetRecord, parse_manifest, read_manifest_bytes
from flagrelease.records.recipe import Recipe
from flagrelease.records.report import Report, read_passing_report


@dataclass(frozen=True, slots=True)
class Records:
    """What is known of one release for one chip.

    Attributes:
        recipe: the manifest's, or the one attached to a release that was converted without any.
        licence: its SPDX id.
        report: None only where publishing without validation was asked for.
    """

    release: Path
    manifest: Manifest
    manifest_bytes: bytes
    recipe: Recipe
    chip: Chip
    licence: str
    report: Report | None
    report_bytes: bytes | None

    @property
    def wanted(self) -> ChipRelease:
        """What the recipe says of this release of the chip."""
        of_chip = releases_of(self.recipe.model, self.recipe.releases, self.chip, self.recipe.owner)
        return next(one for one in of_chip if one.spec.is_of(self.target))

    @property
    def product(self) -> CardProduct:
        """The product that the release is for."""
        return self.wanted.product

    @property
    def family(self) -> Family[Any]:
        """Of the model, by the release's config.json.

        Raises:
            VerificationError: it cannot be read.
            CheckpointError: it is of no family.
        """
        return family_of_document(read_document(self, "config.json"), self.release / "config.json")

    @property
    def manifest_sha256(self) -> str:
        """What ties report, card and statement to the manifest."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    @property
    def recipe_document(self) -> dict[str, Any]:
        """The recipe as the statement holds it: the manifest's word for word, where the manifest has one."""
        return self.recipe.document() if self.manifest.recipe is None else self.manifest.recipe

    @property
    def target(self) -> TargetRecord:
        """Format and layout."""
        return self.manifest.target

    @property
    def weights_proved(self) -> bool:
        """Whether a report says that the weights are those of the source."""
        return self.report is not None and self.report.weights_proved

    @property
    def layout(self) -> str:
        """`hf`, or `mp16`."""
        return "hf" if self.target.mp is None else f"mp{self.target.mp}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensor files."""
        return sum(file.size for file in self.manifest.files if file.path.endswith(".safetensors"))

    @property
    def cards(self) -> int:
        """Cards it is made for: one a rank; of the hf layout the fewest that hold a whole copy and can cut it."""
        return self.target.mp or cards_for(self.weight_bytes, self.product.memory_gib)

    @property
    def nodes(self) -> int:
        """Nodes those cards are in."""
        return -(-self.cards // self.product.cards_per_node)


def read_document(records: Records, name: str) -> dict[str, Any]:
    """A JSON object of the release, by the name of its file.

    Raises:
        VerificationError: it cannot be read, or is no such document.
    """
    path = records.release / name
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise VerificationError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise VerificationError(f"{path}: a JSON object is expected")
    return document


def default_report(release: Path, chip: str) -> Path:
    """Where the report of a release is, unless somebody says otherwise (docs/validation.md)."""
    return release.parent / "validation" / f"{release.name}-{chip}" / "report.json"


def read_records(
    release: Path,
    chip: Chip,
    report: Path | None,
    allow_unvalidated: bool,
    allow_unproved_weights: bool = False,
    recipe: Recipe | None = None,
) -> Records:
    """Read the records of a release once and tie them together: first the small ones, then the files' sizes.

    Args:
        recipe: attached to a release that was converted without one; it must give the same bytes.

    Raises:
        UsageError: no recipe, or it gives this chip something else.
        VerificationError: no manifest, a file of it is missing or has another size, no passing report (and
            `allow_unvalidated` is false), one that did not compare the weights with their source (and
            `allow_unproved_weights` is false), or one that is not of this manifest and chip.
    """
    content = read_manifest_bytes(release)
    manifest = parse_manifest(content, str(release / MANIFEST_NAME))
    followed = require_recipe(manifest, chip.id, recipe)
    licence = find_licence(followed.source.license)
    if report is None and not allow_unvalidated:
        raise VerificationError(f"{release}: no report; validate the release for {chip.id} first")
    read = report and read_passing_report(report, hashlib.sha256(content).hexdigest(), chip.id)
    if read and not (read[0].weights_proved or allow_unproved_weights):
        raise VerificationError(
            f"{report}: passed without comparing the weights with their source, so a fault of the conversion is not "
            "excluded (docs/validation-defects.md); validate with --source and another --out, or publish with "
            "--allow-unproved"
        )
    _check_files(release, manifest)
    return Records(release, manifest, content, followed, chip, licence, *(read or (None, None)))


def _check_files(release: Path, manifest: Manifest) -> None:
    """Sizes only: bytes are checked where they are read anyway, on their way to the target."""
    for file in manifest.files:
        path = release / file.path
        if not path.is_file():
            raise VerificationError(f"{path}: in the manifest, but not there")
        if path.stat().st_size != file.size:
            raise VerificationError(f"{path}: {path.stat().st_size:,} bytes; the manifest says {file.size:,}")
