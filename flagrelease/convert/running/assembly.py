"""The last step of a release: files get their names, documents join them, the manifest closes it.

Nothing had a final name before. Each step can be repeated, so a kill between any two is repaired by the next call.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from flagrelease import __version__
from flagrelease.convert.planning.plan import Plan, ReleasePlan
from flagrelease.convert.running.journal import Journal
from flagrelease.durable.files import copy_whole, sync_folder, write_whole
from flagrelease.errors import CheckpointError
from flagrelease.records.manifest import (
    MANIFEST_NAME,
    CheckedFileRecord,
    ElementCounts,
    FileRecord,
    Manifest,
    SourceFileRecord,
    SourceRecord,
    TensorRecord,
    ToolRecord,
)
from flagrelease.shard.files import CheckpointFiles


def assemble(
    plan: Plan, release: ReleasePlan, folder: Path, journal: Journal, checked: tuple[CheckedFileRecord, ...]
) -> None:
    """Make `folder` the finished release; `checked` are the source files that were compared with a stated digest.

    Its tensor files are whole, in the journal's work folder or in place."""
    records = []
    for file in release.files:
        grown = journal.work / file.name
        if grown.is_file():
            grown.replace(folder / file.name)
        records.append(FileRecord(path=file.name, size=file.size, sha256=journal.files[file.name].sha256))
    sync_folder(folder)
    for name, content in release.documents.written.items():
        write_whole(folder / name, content)
        records.append(FileRecord(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    for name, planned in release.documents.copied.items():
        size, sha256 = _copy(plan.source.files, name, folder / name)
        if size != planned:
            raise CheckpointError(f"{plan.source.root / name}: {planned} bytes when the work began, {size} now")
        records.append(FileRecord(path=name, size=size, sha256=sha256))
    manifest = make_manifest(plan, release, journal, records, checked)
    write_whole(folder / MANIFEST_NAME, manifest.to_json())
    journal.remove()


def _copy(files: CheckpointFiles, name: str, path: Path) -> tuple[int, str]:
    """Copy a companion; return its size and SHA-256."""
    if files.folder is not None:
        return copy_whole(files.folder / name, path)
    content = files.read(name)
    write_whole(path, content)
    return len(content), hashlib.sha256(content).hexdigest()


def make_manifest(
    plan: Plan,
    release: ReleasePlan,
    journal: Journal,
    files: list[FileRecord],
    checked: tuple[CheckedFileRecord, ...],
) -> Manifest:
    """The manifest of a release, from the records of its files and tensors alone: the files need not be there."""
    results = [
        journal.tensors[tensor.spec.name, action]
        for tensor, action, part in release.parts.values()
        if part.name == tensor.spec.name
    ]
    by_name = {result.tensor: result for result in results}
    source_tensors: dict[str, str] = {}
    counts = ElementCounts()
    for result in results:
        source_tensors |= result.source
        counts += result.counts
    return Manifest(
        tool=ToolRecord(version=__version__),
        model=plan.provenance.model,
        target=release.target.record(release.layout.o_groups if release.layout else None),
        source=SourceRecord(
            repo=plan.provenance.repo,
            revision=plan.provenance.revision,
            license=plan.provenance.license,
            identity=plan.source.identity.digest,
            headers_sha256=plan.source.identity.headers_sha256,
            config_sha256=plan.source.identity.config_sha256,
            contents_blake3=plan.source.identity.contents_blake3,
            files=tuple(
                SourceFileRecord(path=h.file.name, size=h.file_size, header_sha256=hashlib.sha256(h.raw).hexdigest())
                for h in plan.source.index.headers
            ),
            tensors=source_tensors,
            checked=checked,
        ),
        recipe=plan.provenance.recipe,
        options=plan.options.model_dump(mode="json"),
        plan=release.digest,
        elements=counts,
        inexact={r.tensor: n for r in results if (n := r.counts.rounded + r.counts.lost)},
        losses={r.tensor: r.loss for r in results if r.loss is not None},
        files=tuple(sorted(files, key=lambda record: record.path)),
        tensors={
            name: TensorRecord(
                dtype=part.dtype,
                shape=part.shape,
                blake3=by_name[tensor.spec.name].parts[part.role],
            )
            for name, (tensor, _, part) in release.parts.items()
        },
    )
