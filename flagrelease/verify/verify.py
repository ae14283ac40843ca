"""`verify_release`: the independent proof of a converted release.

It shares no code with `flagrelease.convert`: the decoder, the rules of splitting and the list of expected tensors are
written a second time, so that an error in one of the two shows as a disagreement. See docs/verify.md for what each
check proves and what it does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from flagrelease.errors import UsageError, VerificationError
from flagrelease.records.manifest import MANIFEST_NAME, ElementCounts, Manifest
from flagrelease.records.release import ReleaseOnDisk, read_release
from flagrelease.shard.files import CheckpointFiles
from flagrelease.verify.companions import check_companions
from flagrelease.verify.configs import check_config
from flagrelease.verify.expected import ExpectedWeight
from flagrelease.verify.integrity import checking_files
from flagrelease.verify.origin import Origin, open_source
from flagrelease.verify.replicas import check_replicas
from flagrelease.verify.result import Check, CheckLog, Finding, VerifyReport
from flagrelease.verify.stacks import check_stacks
from flagrelease.verify.structure import StoredRelease, check_structure
from flagrelease.verify.weights import WeightChecks, check_recorded_copies
from flagrelease.verify.workers import Workers

NO_SOURCE = "no source was given"
NO_STRUCTURE = "the structure does not hold, so bytes cannot be placed"


def verify_release(
    release: Path,
    source: Path | CheckpointFiles | None = None,
    sample: float = 1.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    workers: int = 1,
    stacks: Iterable[str] = (),
) -> VerifyReport:
    """Check a release folder, and its weights against their source if that is given.

    Args:
        release: folder with `manifest.json`.
        source: the checkpoint it was converted from: its folder, or its files wherever they are.
        sample: share of the weights, in (0, 1], whose data `tensors` and `source` read; a scale goes with its weight.
            All other checks are always complete.
        seed: chooses the weights of a sample.
        progress: is told bytes of the release as they are read, from worker threads, one call at a time. Their sum
            is about `bytes_to_read`.
        workers: threads. They never change the report.
        stacks: ids of serving stacks that must load the release, beside those that its recipe names.

    Raises:
        UsageError: `sample` or `workers` is out of range, or there is no such stack.
        VerificationError: there is no release to check: no folder, no manifest, a file that cannot be read.
        CheckpointError: the source is not a sound checkpoint.
    """
    if not release.is_dir():
        raise VerificationError(f"{release}: no such folder")
    return verify_read_release(read_release(release), source, sample, seed, progress, workers, stacks)


def verify_read_release(
    release: ReleaseOnDisk,
    source: Path | CheckpointFiles | None,
    sample: float,
    seed: int,
    progress: Callable[[int], None] | None,
    workers: int,
    stacks: Iterable[str] = (),
) -> VerifyReport:
    """`verify_release` of a release whose manifest was read already."""
    if not 0 < sample <= 1 or workers < 1:
        raise UsageError(f"sample {sample} must be above 0 and at most 1, and workers {workers} at least 1")
    folder, manifest = release.folder, release.manifest
    loading, verdicts = check_stacks(folder, manifest, stacks)
    origin = None if source is None else open_source(source)
    team = Workers(workers, progress)
    with checking_files(folder, manifest, team) as finish:
        others, elements = check_weights(folder, manifest, origin, sample, seed, team)
        files = finish()
    return VerifyReport(
        manifest_sha256=release.manifest_sha256,
        model=manifest.model,
        target=manifest.target,
        sample=sample,
        seed=seed,
        elements=elements,
        checks=(files, *others, loading),
        stacks=verdicts,
    )


def check_weights(
    release: Path, manifest: Manifest, source: Origin | None, sample: float, seed: int, workers: Workers
) -> tuple[list[Check], ElementCounts | None]:
    """All checks of `verify_release` but `files` and `stacks`; the elements are None where there is no source."""
    config, config_check = check_config(release, manifest, source)
    structure, structure_check = check_structure(release, manifest, config)
    data, elements = _check_data(structure, source, sample, seed, workers)
    companions = CheckLog("companions").not_run(NO_SOURCE) if source is None else check_companions(manifest, source)
    return [config_check, structure_check, *data, companions], elements


def bytes_to_read(manifest: Manifest, sample: float) -> int:
    """About how many bytes `progress` will be told in all (headers of files count as if they were tensors)."""
    stored = sum(record.size for record in manifest.files if record.path.endswith(".safetensors"))
    return sum(record.size for record in manifest.files) + int(stored * sample)


def _check_data(
    release: StoredRelease | None, source: Origin | None, sample: float, seed: int, workers: Workers
) -> tuple[list[Check], ElementCounts | None]:
    if release is None:
        return [CheckLog(name).not_run(NO_STRUCTURE) for name in ("replicas", "tensors", "source")], None
    replicas = check_replicas(release, workers)
    weights = sampled(release.weights, sample, seed)
    share = f"{len(weights)} of {len(release.weights)} weights" + ("" if sample == 1 else f" (seed {seed})")
    known = release.manifest.source.checked_against
    comparable = source is not None and source.index.headers_sha256() == release.manifest.source.headers
    with contextlib.ExitStack() as opened:
        origin = source if comparable else None
        if origin is not None and origin.files.folder is None:
            origin = replace(origin, reading=opened.enter_context(origin.files.tensors()))
        run = WeightChecks(release, origin, workers)
        check_recorded_copies(release, run.tensors)
        run.run(weights)
    checks = [replicas, run.tensors.close(f"gathered digests against the manifest: {share}")]
    if source is None:
        return [*checks, run.source.not_run(NO_SOURCE)], None
    if not comparable:
        run.source.add(
            Finding(rule=f"{source.root} is not the checkpoint that the manifest records: {_which(release, source)}")
        )
        return [*checks, run.source.close("headers of the source against the manifest; no data read")], None
    if sample == 1:
        _compare_counts(run.elements, release.manifest.elements, run.source)
    proved = run.source.close(f"the source through the second decoder: {share}; its files: {known}")
    return [*checks, proved], run.elements


def sampled(weights: Sequence[ExpectedWeight], share: float, seed: int) -> list[ExpectedWeight]:
    """`share` of the weights, rounded up, chosen by a hash of seed and name and so the same everywhere."""

    def rank(weight: ExpectedWeight) -> bytes:
        return hashlib.sha256(f"{seed}\n{weight.spec.name}".encode()).digest()

    return sorted(weights, key=rank)[: math.ceil(share * len(weights))]


def _which(release: StoredRelease, source: Origin) -> str:
    recorded = {record.path: (record.size, record.header_sha256) for record in release.manifest.source.files}
    found = {h.file.name: (h.file_size, hashlib.sha256(h.raw).hexdigest()) for h in source.index.headers}
    names = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
    return f"{len(names)} files differ in name, size or header" + (f", the first is {names[0]}" if names else "")


def _compare_counts(counted: ElementCounts, recorded: ElementCounts, log: CheckLog) -> None:
    for kind, count in counted.model_dump().items():
        claimed = recorded.model_dump()[kind]
        if claimed != count:
            log.add(
                Finding(file=MANIFEST_NAME, rule=f"elements.{kind} is {claimed}, the second decoder counts {count}")
            )
