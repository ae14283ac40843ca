"""The stages integrity and weights, which read files and need no device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagrelease.records.manifest import ElementCounts, Manifest
from flagrelease.records.report import PartVerdict, Stage
from flagrelease.records.rules import StageName
from flagrelease.records.source_identity import identify
from flagrelease.validate.stages.request import ValidationRequest
from flagrelease.validate.stages.stage import ABSENT, Outcome, Watch
from flagrelease.verify.integrity import check_files
from flagrelease.verify.origin import open_source
from flagrelease.verify.result import Check
from flagrelease.verify.verify import bytes_to_read, check_weights
from flagrelease.verify.workers import Workers

_NOTHING = "Not informative: the manifest names not one {}."
_SEED = 0  # of a sample; a validation reads everything
_DONE = {
    "copied": "kept bit for bit",
    "exact": "decoded to BF16 without rounding",
    "rounded": "decoded to BF16 with rounding",
    "repacked": "FP4 held exactly as FP8",
    "lost": "FP4 that FP8 could not hold exactly",
}


@dataclass(frozen=True, slots=True)
class IntegrityStage:
    """Compares the files with the manifest."""

    request: ValidationRequest
    name: StageName = "integrity"

    def missing(self) -> None:
        """Nothing: this stage can always be run."""

    def inputs(self) -> dict[str, str]:
        """Nothing: it reads only the release."""
        return {}

    def run(self, watch: Watch) -> Outcome:
        """Hash every file."""
        release = self.request.release
        total, count = sum(record.size for record in release.manifest.files), len(release.manifest.files)
        check = check_files(release.folder, release.manifest, _workers(self.request, watch, self.name, total))
        said = _NOTHING.format("file")
        if count:
            said = f"The folder holds the {count} files of its manifest and nothing else."
        stage = Stage(
            name=self.name,
            verdict=_verdict([check], count),
            detail=_failures([check]) or said,
            proves=()
            if check.failed or not count
            else (f"All {count} files have the sizes and the SHA-256 of the manifest.",),
            leaves_open=("Whether the manifest is right: weights are proved in the next stage.",),
            figures={"checks": [check.model_dump(mode="json")]},
        )
        return Outcome(stage=stage, inputs={})


@dataclass(frozen=True, slots=True)
class WeightsStage:
    """Compares the tensors with the manifest, and with the source if it is given."""

    request: ValidationRequest
    name: StageName = "weights"

    def missing(self) -> None:
        """Nothing: without a source, the tensors are compared with the manifest's digests."""

    def inputs(self) -> dict[str, str]:
        """The identity of the source, or that there was none."""
        path = self.request.source
        return {"source": ABSENT if path is None else identify(path).digest}

    def run(self, watch: Watch) -> Outcome:
        """Check every tensor."""
        source = None if self.request.source is None else open_source(self.request.source)
        manifest = self.request.release.manifest
        total = bytes_to_read(manifest, 1.0) - sum(record.size for record in manifest.files)
        team = _workers(self.request, watch, self.name, total)
        checks, elements = check_weights(self.request.release.folder, manifest, source, 1.0, _SEED, team)
        verdict = _verdict(checks, len(manifest.tensors))
        stage = Stage(
            name=self.name,
            verdict=verdict,
            detail=_failures(checks) or _detail(manifest, elements),
            proves=_proves(manifest, elements) if verdict == "pass" else (),
            leaves_open=_leaves_open(elements),
            figures={"checks": [check.model_dump(mode="json") for check in checks]},
        )
        return Outcome(stage=stage, inputs=self.inputs())


def _workers(request: ValidationRequest, watch: Watch, name: str, total: int) -> Workers:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        watch(name, min(done, total), total, "B")

    return Workers(request.workers, advance)


def _verdict(checks: Sequence[Check], looked_at: int) -> PartVerdict:
    """Of a release without a file or a tensor every check passes, and none says anything."""
    if any(check.status == "fail" for check in checks):
        return "fail"
    return "pass" if looked_at else "not-informative"


def _failures(checks: Sequence[Check]) -> str:
    """Describe the failed checks with their first findings; empty if none failed."""
    failed = [check for check in checks if check.status == "fail"]
    return "; ".join(f"{check.name}: {check.findings[0]} ({check.failed:,} in all)" for check in failed)


def _detail(manifest: Manifest, elements: ElementCounts | None) -> str:
    count = f"{len(manifest.tensors):,} tensors"
    if not manifest.tensors:
        return _NOTHING.format("tensor")
    if elements is None:
        return f"All {count} have the digests of the manifest; the source was not at hand."
    return f"All {count} are bit for bit what a second decoder makes of the source."


def _proves(manifest: Manifest, elements: ElementCounts | None) -> tuple[str, ...]:
    whole = "Config, index and headers describe one model; every rank has its tensors, and copies are the same bytes."
    if elements is None:
        return whole, f"Gathered from its parts, each of {len(manifest.tensors):,} tensors has the manifest's digest."
    counted = [f"{count:,} {_DONE[kind]}" for kind, count in elements.model_dump().items() if count]
    return whole, f"Elements of all weights, counted by the second decoder: {', '.join(counted)}."


def _leaves_open(elements: ElementCounts | None) -> tuple[str, ...]:
    if elements is None:
        return ("Whether the manifest's digests are of the right values: that needs --source.",)
    lines = ["Whether the source is DeepSeek's, and whether an engine computes with the weights as it should."]
    if elements.rounded or elements.lost:
        lines.append(f"{elements.rounded + elements.lost:,} elements are not exactly those of the source.")
    return tuple(lines)
