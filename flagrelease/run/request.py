"""`RunRequest`: what `flagrelease run` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from flagrelease.errors import UsageError
from flagrelease.publish.hubs.registry import hub_by_scheme
from flagrelease.records.chip_releases import ChipRelease
from flagrelease.records.recipe import Recipe

StageName = Literal["convert", "verify", "validate", "publish"]
STAGES: tuple[StageName, ...] = get_args(StageName)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Everything, and the recipe already read.

    Attributes:
        checkpoint: the source, in place of the folder that the recipe names.
        chips: releases of the recipe, as `CHIP` or `CHIP:FORMAT-LAYOUT`; all by default.
        out: releases are `out/FORMAT-LAYOUT`, validations `out/validation/RELEASE-CHIP`, the baseline `out/baseline`.
        begin: the first stage: what the earlier ones leave was made here before, or was brought here.
        until: the last stage.
        replace: what an earlier recipe or checkpoint gave is removed where something else is to stand in its place.
        disk_limit: bytes that `out` may take.
        target: `hf`, `modelscope`, or a folder that gets a folder for each release of a chip.
        yes: publish; without it the plan of each publication is made and nothing else.
        baseline: made elsewhere by `baseline record`; None: recorded here.
        source_digests: SHA-256 of files of the source, in the format of sha256sum.
        data: files of a benchmark, by its name in the recipe; documents: texts of the baseline's logits.
    """

    path: Path
    recipe: Recipe
    out: Path
    checkpoint: Path | None = None
    chips: tuple[str, ...] = ()
    begin: StageName = "convert"
    until: StageName = "validate"
    replace: bool = False
    disk_limit: int | None = None
    target: str | None = None
    private: bool = False
    yes: bool = False
    signing_key: Path | None = None
    baseline: Path | None = None
    data: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    documents: Path | None = None
    source_digests: Path | None = None
    device: str = "auto"
    operators: str = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if STAGES.index(self.begin) > STAGES.index(self.until):
            raise UsageError(f"--from {self.begin} contradicts --until {self.until}")
        if self.until == "publish" and self.target is None:
            raise UsageError("--until publish needs --publish hf, modelscope or a folder")
        if self.until != "publish" and self.target is not None:
            raise UsageError(f"--publish {self.target}: contradicts --until {self.until}")
        if (self.yes or self.private or self.signing_key is not None) and self.target is None:
            raise UsageError("--yes, --private and --signing-key belong to --publish")

    @property
    def wanted(self) -> tuple[ChipRelease, ...]:
        """What each chip gets.

        Raises:
            UsageError: a chip or release that the recipe does not have.
        """
        return self.recipe.chosen(self.chips)

    def wants(self, stage: StageName) -> bool:
        """Whether the stage is asked for."""
        return STAGES.index(self.begin) <= STAGES.index(stage) <= STAGES.index(self.until)

    def destination(self, repo: str) -> str:
        """Where the publication of a repository goes: the hub, or its folder in the target."""
        assert self.target is not None
        return (
            self.target if hub_by_scheme(self.target) is not None else str(Path(self.target) / repo.rpartition("/")[2])
        )
