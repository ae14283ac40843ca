"""The check `structure`: headers, index and manifest agree, and hold exactly the tensors that the target must have.

It reads headers only. So it proves names, dtypes, shapes and ranks, but not the bytes of the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from flagrelease.errors import CheckpointError, VerificationError
from flagrelease.model.config import FamilyConfig
from flagrelease.records.manifest import MANIFEST_NAME, Manifest
from flagrelease.shard.header import TensorMeta
from flagrelease.verify.expected import ExpectedWeight, Form, expected_weights
from flagrelease.verify.gather import GatheredTensor
from flagrelease.verify.result import Check, CheckLog, Finding
from flagrelease.verify.splits import Box, Ranks, as_matrix, place
from flagrelease.verify.stored import StoredTensors, read_stored

_DETAIL = "headers, index and manifest against the inventory of config.json and the layout of the target"

Placement = dict[Box, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """A release that passed `structure`: every tensor has its dtype, shape and parts, so its bytes can be gathered."""

    folder: Path
    manifest: Manifest
    config: FamilyConfig
    weights: tuple[ExpectedWeight, ...]
    tensors: dict[str, GatheredTensor]

    def path_of(self, file: PurePath) -> str:
        """A file's path as the manifest writes it."""
        return file.relative_to(self.folder).as_posix()


def check_structure(
    folder: Path, manifest: Manifest, config: FamilyConfig | None
) -> tuple[StoredRelease | None, Check]:
    """Compare headers with what the release must hold. The release is None unless the check passes."""
    log = CheckLog("structure")
    if config is None:
        return None, log.not_run("config.json cannot be read, so nothing says which tensors to expect")
    try:
        stored = read_stored(folder, manifest.target, log)
        weights = expected_weights(manifest, config)
        placed = {form.name: (form, _place(form, manifest, config)) for weight in weights for form in weight.forms}
    except (CheckpointError, VerificationError) as error:
        log.add(Finding(rule=str(error)))
        return None, log.close(_DETAIL)
    log.saw(sum(len(metas) for metas in stored.values()))
    _compare_manifest(manifest, [form for form, _ in placed.values()], log)
    _compare_ranks(stored, placed, log)
    _compare_dtypes(stored, manifest, log)
    if log.failed:
        return None, log.close(_DETAIL)
    tensors = {name: _gather(form, boxes, stored) for name, (form, boxes) in placed.items()}
    return StoredRelease(folder, manifest, config, tuple(weights), tensors), log.close(_DETAIL)


def _place(form: Form, manifest: Manifest, config: FamilyConfig) -> Placement:
    target = manifest.target
    if target.mp is None:
        rows, columns = as_matrix(form.shape)
        return {Box(0, rows, 0, columns): (0,)}
    if (target.mp > config.o_groups) != (target.o_groups is not None):
        raise VerificationError(
            f"{MANIFEST_NAME}: target.o_groups is {target.o_groups!r} for mp{target.mp} of a model with "
            f"{config.o_groups} o-groups; it says how they are spread where mp is larger, and only there"
        )
    experts = list(config.expert_counts.values())  # of layers, and of draft stages if they have others
    ranks = Ranks(target.mp, config.o_groups, experts[0], target.o_groups, experts[-1])
    return place(form.name, form.shape, ranks)


def _compare_manifest(manifest: Manifest, forms: list[Form], log: CheckLog) -> None:
    names = {form.name for form in forms}
    for name in sorted(manifest.tensors.keys() - names):
        log.add(Finding(tensor=name, file=MANIFEST_NAME, rule="is no tensor of this model and target"))
    for part in ("inexact", "losses"):
        for name in sorted(getattr(manifest, part).keys() - names):
            log.add(Finding(tensor=name, file=MANIFEST_NAME, rule=f"{part} names no tensor of this model"))
    for form in forms:
        record = manifest.tensors.get(form.name)
        if record is None:
            log.add(Finding(tensor=form.name, file=MANIFEST_NAME, rule="missing"))
        elif record.dtype not in form.dtypes or record.shape != form.shape:
            rule = f"says {record.dtype} {list(record.shape)}, {_wanted(form.dtypes, form.shape)}"
            log.add(Finding(tensor=form.name, file=MANIFEST_NAME, rule=rule))


def _compare_ranks(stored: StoredTensors, placed: dict[str, tuple[Form, Placement]], log: CheckLog) -> None:
    wanted: dict[int, dict[str, tuple[Form, Box]]] = {rank: {} for rank in stored}
    for name, (form, boxes) in placed.items():
        for box, ranks in boxes.items():
            for rank in ranks:
                wanted[rank][name] = (form, box)
    for rank, metas in stored.items():
        for name in sorted(metas.keys() - wanted[rank].keys()):
            rule = f"does not belong to rank {rank} of this model and target"
            log.add(Finding(tensor=name, file=metas[name].file.name, rule=rule))
        for name, (form, box) in wanted[rank].items():
            if name not in metas:
                log.add(Finding(tensor=name, rule=f"missing on rank {rank}"))
            else:
                _compare_meta(metas[name], form, box, log)


def _compare_dtypes(stored: StoredTensors, manifest: Manifest, log: CheckLog) -> None:
    for metas in stored.values():
        for name, meta in metas.items():
            record = manifest.tensors.get(name)
            if record is not None and record.dtype != meta.dtype:
                log.add(
                    Finding(tensor=name, file=meta.file.name, rule=f"is {meta.dtype}, the manifest says {record.dtype}")
                )


def _compare_meta(meta: TensorMeta, form: Form, box: Box, log: CheckLog) -> None:
    # DeepSeek-V4 has vectors and matrices only
    shape = (box.bottom - box.top, box.right - box.left)[: len(form.shape)]
    if meta.dtype not in form.dtypes or meta.shape != shape:
        rule = f"is {meta.dtype} {list(meta.shape)}, {_wanted(form.dtypes, shape)}"
        log.add(Finding(tensor=form.name, file=meta.file.name, rule=rule))


def _wanted(dtypes: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return f"must be {' or '.join(dtypes)} {list(shape)}"


def _gather(form: Form, boxes: Placement, stored: StoredTensors) -> GatheredTensor:
    held = {box: tuple(stored[rank][form.name] for rank in ranks) for box, ranks in boxes.items()}
    dtype = next(iter(held.values()))[0].dtype
    return GatheredTensor(form.name, dtype, form.shape, held)
