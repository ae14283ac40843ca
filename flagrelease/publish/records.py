"""The records a publication is made of, and nothing else: manifest, recipe, chip, report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flagrelease.chips.table import Chip, get_chip
from flagrelease.errors import UsageError, VerificationError, first_problem
from flagrelease.publish.licence import Licence, find_licence
from flagrelease.records.manifest import MANIFEST_NAME, Manifest, TargetRecord, read_manifest
from flagrelease.records.recipe import Recipe
from flagrelease.records.report import Report, read_passing_report


@dataclass(frozen=True, slots=True)
class Records:
    """What is known of one release for one chip. `report` is None only where publishing unvalidated was asked for."""

    release: Path
    manifest: Manifest
    manifest_bytes: bytes
    recipe: Recipe
    chip: Chip
    licence: Licence
    report: Report | None
    report_bytes: bytes | None

    @property
    def manifest_sha256(self) -> str:
        """What ties report, card and statement to the manifest."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    @property
    def target(self) -> TargetRecord:
        """Dtype and layout."""
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
        """Cards it is made for: one a rank; of the hf layout the fewest that hold a whole copy and can cut it.

        What is cut (heads, experts, vocabulary) is a power of two times something in every DeepSeek-V4.
        """
        needed = -(-self.weight_bytes // (self.chip.memory_gib * 2**30 * 9 // 10))
        return self.target.mp or 1 << (needed - 1).bit_length()

    @property
    def nodes(self) -> int:
        """Nodes those cards are in."""
        return -(-self.cards // self.chip.cards_per_node)


def default_report(release: Path, chip: str) -> Path:
    """Where the report of a release is, unless somebody says otherwise (docs/validation.md)."""
    return release.parent / "validation" / f"{release.name}-{chip}" / "report.json"


def read_records(
    release: Path,
    chip_name: str,
    report: Path | None,
    allow_unvalidated: bool,
    allow_unproved_weights: bool = False,
) -> Records:
    """Read and tie together the records of a release.

    Raises:
        VerificationError: no manifest, a file of it is missing or has another size, no passing report (and
            `allow_unvalidated` is false), one that did not compare the weights with their source (and
            `allow_unproved_weights` is false), or one that is not of this manifest and chip.
        UsageError: converted without a recipe, or the recipe gives this chip something else.
    """
    chip = get_chip(chip_name)
    manifest = read_manifest(release)
    content = (release / MANIFEST_NAME).read_bytes()
    _check_files(release, manifest)
    recipe = _recipe_of(manifest, chip)
    licence = find_licence(manifest.source.license)
    if report is None and not allow_unvalidated:
        raise VerificationError(f"{release}: no report; validate the release for {chip.id} first")
    read = report and read_passing_report(report, hashlib.sha256(content).hexdigest(), chip.id)
    if read and not (read[0].weights_proved or allow_unproved_weights):
        raise VerificationError(
            f"{report}: passed without comparing the weights with their source, so a fault of the conversion is not "
            "excluded (docs/validation-defects.md); validate with --source and another --out, or publish with "
            "--allow-unproved"
        )
    return Records(release, manifest, content, recipe, chip, licence, *(read or (None, None)))


def _check_files(release: Path, manifest: Manifest) -> None:
    """Sizes only: bytes are checked where they are read anyway, on their way to the target."""
    for file in manifest.files:
        path = release / file.path
        if not path.is_file():
            raise VerificationError(f"{path}: in the manifest, but not there")
        if path.stat().st_size != file.size:
            raise VerificationError(f"{path}: {path.stat().st_size:,} bytes; the manifest says {file.size:,}")


def _recipe_of(manifest: Manifest, chip: Chip) -> Recipe:
    if manifest.recipe is None:
        raise UsageError(
            "manifest.json: recipe is null; publish what was converted from a recipe, which names the model"
        )
    try:
        recipe = Recipe.model_validate(manifest.recipe)
    except ValidationError as error:
        raise VerificationError(f"manifest.json: recipe.{first_problem(error)}") from error
    if (release := recipe.releases.get(chip.id)) is None:
        raise UsageError(f"chip {chip.id!r} is not in the release's recipe; it has {', '.join(recipe.releases)}")
    target = manifest.target
    layout = "hf" if target.mp is None else f"mp{target.mp}"
    if (release.dtype, release.layout) != (target.dtype, layout):
        raise UsageError(
            f"the recipe gives {chip.id} {release.dtype}-{release.layout}; this release is {target.dtype}-{layout}"
        )
    return recipe
