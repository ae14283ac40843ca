"""`convert_part`: makes the files of one share, as a conversion alone makes all of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flagrelease.convert.codecs.lookup import Lookup
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.checking import begin_check
from flagrelease.convert.running.conversion import Progress, require_apart, write_files
from flagrelease.convert.running.earlier import refuse_other_source
from flagrelease.convert.running.journal import WORK_FOLDER, Journal
from flagrelease.convert.sharing.part_folder import (
    DONE_NAME,
    Done,
    done_record,
    folder_of,
    open_part_journal,
    read_done,
    require_count,
    require_same,
)
from flagrelease.convert.sharing.shares import Share
from flagrelease.durable.files import write_whole
from flagrelease.source.digests import Claims


@dataclass(frozen=True, slots=True)
class PartResult:
    """A finished part.

    Attributes:
        folder: where it lies.
        complete_before: whether nothing was left to do.
    """

    folder: Path
    complete_before: bool


def convert_part(
    plan: Plan, share: Share, out: Path, *, workers: int, lookup: Lookup, progress: Progress, claims: Claims
) -> PartResult:
    """Make the files of `share` in OUT/parts/; resume what an earlier call began, leave alone what it finished.

    Args:
        plan: the whole plan, of which `share` is a share.
        share: what to make.
        out: the folder of all parts and, at the end, of the releases.
        workers: threads that decode.
        lookup: where decoding runs.
        progress: called with the bytes of this share written so far.
        claims: digests stated for files of the source; this part compares the tensor files of its share with them.

    Raises:
        UsageError, ResourceError, CheckpointError: as a conversion alone.
        ResourceError: the folder holds parts of another number, of another plan, or a conversion without parts.
    """
    require_count(out, share.count)
    folder = folder_of(out, share)
    stated = {name: own for name, own in claims.items() if name in share.sources or not name.endswith(".safetensors")}
    for release in plan.releases:
        require_apart(plan.source.files.folder, folder / release.target.folder)
        refuse_other_source(out / release.target.folder, plan.source, stated)
    done = read_done(folder)
    if done is not None:
        require_same(done, done_record(plan, share, ()), folder)
        if _is_whole(plan, share, folder) and _is_compared(done, stated):
            progress(share.nbytes)
            return PartResult(folder, complete_before=True)
    journals: dict[int, Journal] = {}
    try:
        for number in range(len(plan.releases)):
            journal = open_part_journal(out, plan, share, number)
            if journal is not None:
                journals[number] = journal
        if not journals:
            progress(share.nbytes)
            return PartResult(out, complete_before=True)
        check = begin_check(plan.source.files, stated, journals)
        told = _of_this_share(plan, share, journals, progress)
        write_files(share.of(plan), out, journals, workers, lookup, told, check)
        record = done_record(plan, share, check.records())
        write_whole(folder / DONE_NAME, record.model_dump_json(indent=1).encode() + b"\n")
    finally:
        for journal in journals.values():
            journal.close()
    return PartResult(folder, complete_before=False)


def _of_this_share(plan: Plan, share: Share, journals: Collection[int], progress: Progress) -> Progress:
    """`progress` in bytes of the share. `write_files` counts releases that are complete as a whole."""
    complete = sum(release.size for number, release in enumerate(plan.releases) if number not in journals)
    own = sum(plan.files[n].size for n in share.files if plan.files[n].release not in journals)
    return lambda done: progress(done - complete + own)


def _is_whole(plan: Plan, share: Share, folder: Path) -> bool:
    """Whether all files are there with their sizes. They are not read again; a merge does that."""
    for file in (plan.files[number] for number in share.files):
        path = folder / plan.releases[file.release].target.folder / WORK_FOLDER / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
    return True


def _is_compared(done: Done, claims: Claims) -> bool:
    """Whether every digest that is stated now was compared then."""
    then = {(record.path, record.algorithm, record.digest) for record in done.checked}
    return all((name, one.algorithm, one.digest) in then for name, several in claims.items() for one in several)
