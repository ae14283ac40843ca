"""The comparison of the source with stated digests, resumed: what is found goes into the journals."""

from __future__ import annotations

from collections.abc import Mapping

from flagrelease.convert.running.journal import Journal
from flagrelease.records.manifest import CheckedFileRecord
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.digests import Claims
from flagrelease.source.file_check import FileCheck


def begin_check(files: CheckpointFiles, claims: Claims, journals: Mapping[int, Journal]) -> FileCheck:
    """Compare `files` with `claims`, but for those that an earlier run compared whole: on a hub that means fetching.

    Every journal gets every record, because each release is resumed by its own.

    Raises:
        CheckpointError: a file without tensors is not what a claim says, or cannot be read.
    """

    def record(found: CheckedFileRecord) -> None:
        for journal in journals.values():
            journal.add_checked(found)

    return FileCheck(files, claims, [one for journal in journals.values() for one in journal.checked], record)
