"""`ValidationRequest`: what a user asks to be validated, and the rules that are followed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flagrelease.chips.table import Chip
from flagrelease.errors import UsageError
from flagrelease.records.recipe import Recipe, read_recipe
from flagrelease.records.release import ReleaseOnDisk
from flagrelease.records.rules import BenchmarkRules, StageName, ValidationRules
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.exams.exam import Exam
from flagrelease.validate.exams.marking.sandbox import Sandbox

Data = dict[str, tuple[Path, ...]]
Exams = Mapping[str, Exam]  # by the name of the benchmark in the rules


@dataclass(frozen=True, slots=True)
class ValidationRequest:
    """What is to be validated, and how. No field after `layers` changes the basis of a verdict.

    Attributes:
        source: the checkpoint, if it is at hand; `baseline`: what `record` made of it, here or elsewhere.
        data: files of a benchmark, by its name in the rules; the hub's for those that are not named.
        variants: servers of the same release that were started otherwise, by name; asked as `endpoint` is.
        sandbox: the command that runs what a model writes, for benchmarks of code.
        until: the last stage that is run.
        device: where the model runs; `auto`: the chip's own kind.
        rows: answers at once.
    """

    release: ReleaseOnDisk
    chip: Chip
    rules: ValidationRules
    out: Path
    recipe: Path | None = None
    source: Path | None = None
    baseline: Path | None = None
    data: Data = field(default_factory=dict)
    endpoint: Endpoint | None = None
    variants: Mapping[str, Endpoint] = field(default_factory=dict)
    sandbox: str | None = None
    until: StageName | None = None
    layers: bool = False
    device: str = "auto"
    operators: str = "auto"
    rows: int = 16
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def __post_init__(self) -> None:
        """Refuse data of a benchmark that the rules do not have, and a sandbox that is no command."""
        if self.sandbox is not None:
            _ = Sandbox(self.sandbox).words
        if unknown := sorted(self.data.keys() - self.rules.benchmarks.keys()):
            known = ", ".join(self.rules.benchmarks) or "none"
            raise UsageError(f"--data {unknown[0]}: the rules have no such benchmark (they have: {known})")

    @property
    def command(self) -> str:
        """The command that makes the report, the same on every machine: paths are cut to their last part.

        Of a sandbox the program alone is told: its words are this machine's, and may hold secrets.
        """
        words = ["flagrelease", "validate", self.release.folder.resolve().name, "--chip", self.chip.id]
        for option, path in (("--recipe", self.recipe), ("--source", self.source), ("--baseline", self.baseline)):
            words += [] if path is None else [option, path.resolve().name]
        for name, paths in sorted(self.data.items()):
            words += [word for path in paths for word in ("--data", f"{name}={path.name}")]
        if self.endpoint is not None:
            words += ["--endpoint", self.endpoint.shown, "--model", self.endpoint.model]
            words += ["--dialect", self.endpoint.dialect] if self.endpoint.dialect != "deepseek" else []
            words += [] if self.endpoint.key_variable is None else ["--key-env", self.endpoint.key_variable]
        for name, variant in sorted(self.variants.items()):
            words += ["--variant", f"{name}={variant.shown}"]
        words += [] if self.sandbox is None else ["--sandbox", f"{Path(Sandbox(self.sandbox).words[0]).name} .."]
        words += [] if self.until is None else ["--until", self.until]
        words += ["--layers"] if self.layers else []
        words += [] if self.device == "auto" else ["--device", self.device]
        words += [] if self.operators == "auto" else ["--operators", self.operators]
        return shlex.join(words)


def default_out(release: Path, chip: Chip) -> Path:
    """`validation/RELEASE-CHIP` beside the release: publishing looks there."""
    return release.parent / "validation" / f"{release.name}-{chip.id}"


def default_rules() -> ValidationRules:
    """The rules without a recipe, from published practice: all stages, GPQA Diamond and AIME."""
    presets = {"gpqa": "gpqa-diamond", "aime": "aime"}
    benchmarks = {name: BenchmarkRules.model_validate({"preset": preset}) for name, preset in presets.items()}
    return ValidationRules(benchmarks=benchmarks)


def choose_rules(recipe: Path | None, release: ReleaseOnDisk, chip: Chip) -> ValidationRules:
    """The rules of a recipe that this release was made by, or the default ones.

    Raises:
        UsageError: the recipe is of another model, does not name the chip, or gives it another release.
    """
    return default_rules() if recipe is None else rules_of(recipe, read_recipe(recipe), release, chip)


def rules_of(path: Path, recipe: Recipe, release: ReleaseOnDisk, chip: Chip) -> ValidationRules:
    """The rules of a recipe that was read already; `path` is for messages.

    Raises:
        UsageError: the recipe is of another model, does not name the chip, or gives it another release.
    """
    manifest = release.manifest
    if manifest.model is not None and recipe.model != manifest.model:
        raise UsageError(f"{path}: is of {recipe.model!r}, the release of {manifest.model!r}")
    if chip.id not in recipe.releases:
        raise UsageError(f"{path}: has no release for {chip.id!r}; it has {', '.join(recipe.releases)}")
    target = manifest.target
    if not any(one.is_of(target) for one in recipe.releases[chip.id]):
        wanted = " and ".join(f"{one.format} in {one.layout}" for one in recipe.releases[chip.id])
        layout = "hf" if target.mp is None else f"mp{target.mp}"
        raise UsageError(f"{path}: {chip.id} gets {wanted}, this release is {target.dtype} in {layout}")
    return recipe.validation
