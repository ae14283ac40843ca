"""`gather_equal`: two releases of one source in different layouts hold the same tensors.

By the manifests alone this compares digests. With `read_bytes` both are gathered and compared, which also ties what the
layouts store differently, so that digests cannot be equal: an mp layout of a quantised release holds `wo_a` decoded to
BF16, and `fp8` has scales of experts in F32 in hf and in E8M0 in mp.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flagrelease.errors import VerificationError
from flagrelease.formats.formats import FP8, scale_names, weight_of_scale
from flagrelease.records.manifest import Manifest, read_manifest
from flagrelease.verify.configs import check_config
from flagrelease.verify.expectations import Copied, Decoded, Expectation, HashedTensor
from flagrelease.verify.expected import ExpectedWeight
from flagrelease.verify.gather import GatheredTensor
from flagrelease.verify.repacks import WidenedScale
from flagrelease.verify.result import Check, CheckLog, Finding
from flagrelease.verify.structure import StoredRelease, check_structure
from flagrelease.verify.workers import Workers


def gather_equal(
    first: Path,
    second: Path,
    read_bytes: bool = False,
    progress: Callable[[int], None] | None = None,
    workers: int = 1,
) -> Check:
    """Compare two releases of one source and dtype tensor by tensor.

    Raises:
        VerificationError: one of them is no release, or (with `read_bytes`) its structure does not hold.
    """
    log = CheckLog("gather")
    ours, theirs = read_manifest(first), read_manifest(second)
    _compare_origins(ours, theirs, log)
    if log.failed:
        return log.close("both manifests must name one source and one dtype, and hold the same stages")
    untied = _compare_digests(ours, theirs, log)
    if not read_bytes:
        return log.close(f"digests in both manifests; {untied} are stored differently, so only bytes can tie them")
    team, left, right = Workers(workers, progress), open_release(first), open_release(second)
    pairs = list(zip(left.weights, right.weights, strict=True))
    team.each(lambda pair: _compare_weight(left, right, pair[0], pair[1], team, log), pairs)
    return log.close("digests in both manifests, and the bytes gathered from both")


def open_release(folder: Path) -> StoredRelease:
    """Open a release that passes `config` and `structure`.

    Raises:
        VerificationError: they do not; the message is the first finding.
    """
    manifest = read_manifest(folder)
    config, check = check_config(folder, manifest, None)
    if check.status == "pass":
        release, check = check_structure(folder, manifest, config)
        if release is not None:
            return release
    raise VerificationError(f"{folder}: {check.name}: {check.findings[0]}")


def _compare_origins(ours: Manifest, theirs: Manifest, log: CheckLog) -> None:
    apart = ours.target.drafts != theirs.target.drafts  # then one names fewer tensors of the same source
    if ours.source.identity != theirs.source.identity or (not apart and ours.source.tensors != theirs.source.tensors):
        log.add(Finding(rule="the manifests name different sources"))
    if apart:
        log.add(Finding(rule="one release keeps the draft stages of the model, the other drops them"))
    if ours.target.dtype != theirs.target.dtype:
        log.add(Finding(rule=f"one release is {ours.target.dtype}, the other {theirs.target.dtype}"))


def _canonical(name: str) -> str:
    """A scale under DeepSeek-V4's own spelling, which mp files have whatever the source had; other names unchanged."""
    weight = weight_of_scale(name)
    return name if weight is None else scale_names(weight)[0]


def _compare_digests(ours: Manifest, theirs: Manifest, log: CheckLog) -> str:
    """Compare the tensors that both store in the same form; return, in words, how many they store differently."""
    mine, others = (
        {_canonical(name): record for name, record in manifest.tensors.items()} for manifest in (ours, theirs)
    )
    # an hf release keeps wo_a.scale, an mp release has decoded it away
    decoded = {name.removesuffix(".scale") for name in mine.keys() ^ others.keys() if name.endswith(".wo_a.scale")}
    # and hf has F32 scales where mp has the same powers of two as E8M0
    widened = {
        name
        for name in mine.keys() & others.keys()
        if weight_of_scale(name) is not None and {mine[name].dtype, others[name].dtype} == {"F32", "F8_E8M0"}
    }
    apart = widened | {stem + suffix for stem in decoded for suffix in (".weight", ".scale")}
    for name in sorted((mine.keys() | others.keys()) - apart):
        log.saw(1)
        if name not in mine or name not in others:
            log.add(Finding(tensor=name, rule="is in only one of the two manifests"))
        elif mine[name].blake3 != others[name].blake3:
            log.add(Finding(tensor=name, rule="has different digests in the two manifests"))
    return f"{len(decoded)} wo_a" + (f" and {len(widened)} scales" if widened else "")


def _compare_weight(
    left: StoredRelease,
    right: StoredRelease,
    mine: ExpectedWeight,
    other: ExpectedWeight,
    workers: Workers,
    log: CheckLog,
) -> None:
    if len(mine.forms) < len(other.forms):
        left, right, mine, other = right, left, other, mine
    pairs: list[tuple[GatheredTensor, Expectation]]
    tensors = [HashedTensor(left.tensors[form.name]) for form in mine.forms]
    if len(mine.forms) > len(other.forms) and left.config.block_size is not None:
        pairs = [(right.tensors[other.weight.name], Decoded(tensors[0], tensors[1], FP8, left.config.block_size))]
    else:
        pairs = [_pair(held.tensor, right.tensors[form.name]) for form, held in zip(other.forms, tensors, strict=True)]
    for tensor, expectation in pairs:
        log.saw(1, tensor.nbytes)
        for start, stop in tensor.chunks(expectation.row_multiple):
            found, wanted = tensor.read(start, stop), expectation.rows(start, stop)
            workers.advance(found.nbytes)
            if not np.array_equal(found.view(wanted.dtype), wanted):
                rule = f"differs between the releases, first in rows {start} to {stop}"
                log.add(Finding(tensor=tensor.name, row=start, column=0, rule=rule))
                break


def _pair(left: GatheredTensor, right: GatheredTensor) -> tuple[GatheredTensor, Expectation]:
    """One of two tensors, and what it must hold because of the other."""
    if left.dtype == "F32" and right.dtype == "F8_E8M0":
        left, right = right, left
    widen = left.dtype == "F8_E8M0" and right.dtype == "F32"
    return right, WidenedScale(HashedTensor(left)) if widen else Copied(HashedTensor(left))
