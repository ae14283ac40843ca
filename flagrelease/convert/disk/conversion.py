"""`convert_inside`: a plan carried out in passes that keep to a disk budget.

Each file of a pass is whole in its place, and deleted here, before the next pass begins.

The journal of a release stays until the end: it has the digests of files that are gone, by which their place is asked
whether they are whole, and those of all tensors, of which the manifest is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from flagrelease.convert.codecs.lookup import Lookup
from flagrelease.convert.disk.hand_over import HandOver, staged_file
from flagrelease.convert.planning.passes import DiskPlan, only_files, source_files
from flagrelease.convert.planning.plan import Plan, ReleasePlan
from flagrelease.convert.running.assembly import make_manifest
from flagrelease.convert.running.checking import begin_check
from flagrelease.convert.running.conversion import Progress, require_apart, write_files
from flagrelease.convert.running.earlier import refuse_parts
from flagrelease.convert.running.journal import Journal, open_journal
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.publish.publication import PublishedFile
from flagrelease.publish.staging.place import Place
from flagrelease.records.manifest import MANIFEST_NAME, FileRecord, Manifest
from flagrelease.source.digests import Claims, stated_claims
from flagrelease.source.file_check import FileCheck


def convert_inside(
    plan: Plan,
    disk: DiskPlan,
    out: Path,
    places: Mapping[str, Place],
    *,
    workers: int,
    lookup: Lookup,
    progress: Progress,
    handed_over: Progress,
    claims: Claims | None = None,
) -> dict[str, Manifest]:
    """Make the releases of `plan` pass by pass; nothing of them but records stays in `out`.

    Args:
        plan, out, workers, lookup, progress, claims: as for `running.conversion.convert`.
        disk: the passes.
        places: where each release goes, by its folder's name.
        handed_over: called with the bytes of tensor files that are whole in their places, those of earlier runs first.

    Returns:
        The manifest of each release by folder name; it lies in the release's place.

    Raises:
        FlagReleaseError: as for `convert`; and VerificationError or NetworkError by a place. The same command resumes.
    """
    stated = stated_claims(plan.source.files) if claims is None else claims
    journals: dict[int, Journal] = {}
    try:
        for number, release in enumerate(plan.releases):
            journals[number] = _open(plan, release, out / release.target.folder, places[release.target.folder])
        check = begin_check(plan.source.files, stated, journals)
        work = _Work(plan, out, journals, places, handed_over, check)
        made: dict[int, Manifest] = {}
        for one in disk.passes:
            work.run(one.files, workers, lookup, progress)
            made |= {number: work.complete(number) for number in work.whole_releases() if number not in made}
        return {plan.releases[number].target.folder: manifest for number, manifest in sorted(made.items())}
    finally:
        for journal in journals.values():
            journal.close()


def _open(plan: Plan, release: ReleasePlan, folder: Path, place: Place) -> Journal:
    require_apart(plan.source.files.folder, folder)
    refuse_parts(folder.parent, folder.name)
    journal = None
    if not (folder / MANIFEST_NAME).is_file():
        journal = open_journal(folder, plan, release, {"place": place.address})
    if journal is None:
        raise ResourceError(f"{folder}: holds a finished release; publish it, or give another --out")
    return journal


class _Work:
    """What is where: `gone` are the files (indexes into the plan) that their places have whole."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        journals: dict[int, Journal],
        places: Mapping[str, Place],
        handed_over: Progress,
        check: FileCheck,
    ) -> None:
        self._plan, self._out, self._journals, self._places = plan, out, journals, places
        self._check = check
        self.gone = self._ask()
        for number in self.gone:  # a run that was killed before it deleted one
            file = plan.files[number]
            (journals[file.release].work / file.name).unlink(missing_ok=True)
        self._handed = sum(plan.files[number].size for number in self.gone)
        self._tell = handed_over
        handed_over(self._handed)

    def _ask(self) -> set[int]:
        """Of the files that the journals call finished, those that the places have."""
        gone: set[int] = set()
        for release, journal in self._journals.items():
            states = journal.files
            finished = {
                file.name: number
                for number, file in enumerate(self._plan.files)
                if file.release == release and file.name in states and states[file.name].offset == file.size
            }
            if finished:
                files = [staged_file(journal, self._plan.files[number]) for number in finished.values()]
                place = self._places[self._plan.releases[release].target.folder]
                gone |= {finished[path] for path in place.whole(files)}
        return gone

    def run(self, files: tuple[int, ...], workers: int, lookup: Lookup, progress: Progress) -> None:
        """Make the files of a pass that are not in their places, and take them there."""
        made = self.gone.issuperset(files) and self._recorded(files)
        if made and not self._check.pending():
            return
        part = only_files(self._plan, files)
        # Files of the source that this pass reads; all that are left where a manifest, which names them, comes next.
        compared = None if self._completes(files) else source_files(part)
        if made and not self._check.pending(compared):
            return
        self._clear(files)
        elsewhere = [place for place, number in enumerate(files) if number in self.gone]
        before = sum(self._plan.files[number].size for number in self.gone)
        hand_over = HandOver(self._plan, self._journals, self._places, self._count)
        try:
            write_files(
                part,
                self._out,
                self._journals,
                workers,
                lookup,
                lambda done: progress(before + done),
                self._check,
                compared=compared,
                elsewhere=elsewhere,
                finished=hand_over.put,
            )
            hand_over.finish()
        except BaseException:
            hand_over.abandon()
            raise
        self.gone.update(files)

    def _recorded(self, files: tuple[int, ...]) -> bool:
        """Whether the journals have every tensor of these files: a kill may come between a file's end and a record."""
        tensors = self._plan.source.tensors
        for number in files:
            file = self._plan.files[number]
            actions, known = self._plan.releases[file.release].actions, self._journals[file.release].tensors
            if any((tensors[one.order].spec.name, actions[one.order]) not in known for one in file.slices):
                return False
        return True

    def _clear(self, files: tuple[int, ...]) -> None:
        """Remove files that another budget began: they are not of this pass, and it needs their room."""
        ours = {(self._plan.files[number].release, self._plan.files[number].name) for number in files}
        for file in self._plan.files:
            if (file.release, file.name) not in ours:
                (self._journals[file.release].work / file.name).unlink(missing_ok=True)

    def _count(self, nbytes: int) -> None:
        self._handed += nbytes
        self._tell(self._handed)

    def _completes(self, files: tuple[int, ...]) -> bool:
        """Whether a release is whole when these files are in their places."""
        left = {file.release for n, file in enumerate(self._plan.files) if n not in self.gone and n not in files}
        return any(number not in left for number in self._journals)

    def whole_releases(self) -> list[int]:
        """The releases all of whose files are in their places."""
        left = {file.release for number, file in enumerate(self._plan.files) if number not in self.gone}
        return [number for number in self._journals if number not in left]

    def complete(self, number: int) -> Manifest:
        """Add documents and manifest in the place of a release."""
        release, journal = self._plan.releases[number], self._journals[number]
        files = [staged_file(journal, file) for file in release.files] + self._documents(release)
        records = [FileRecord(path=file.path, size=file.size, sha256=file.sha256) for file in files]
        manifest = make_manifest(self._plan, release, journal, records, self._check.records())
        self._places[release.target.folder].complete([*files, _file(MANIFEST_NAME, manifest.to_json())])
        return manifest

    def _documents(self, release: ReleasePlan) -> list[PublishedFile]:
        """In memory: of V4-Pro they are 30 MB, of which the tokenizer and the index are nearly all."""
        source = self._plan.source
        files = [_file(name, content) for name, content in release.documents.written.items()]
        for name, planned in release.documents.copied.items():
            content = source.files.read(name)
            if len(content) != planned:
                raise CheckpointError(f"{source.root / name}: {planned} bytes when the work began, {len(content)} now")
            files.append(_file(name, content))
        return files


def _file(path: str, content: bytes) -> PublishedFile:
    return PublishedFile(path, len(content), hashlib.sha256(content).hexdigest(), content)
