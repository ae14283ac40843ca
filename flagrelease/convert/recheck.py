"""`--source-digests` for releases that are finished: their source is hashed although there is nothing to convert."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from flagrelease import console
from flagrelease.convert.planning.plan import Plan
from flagrelease.errors import CheckpointError
from flagrelease.records.manifest import Manifest
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.digests import Claims
from flagrelease.source.file_check import FileCheck


def check_finished(
    plan: Plan, manifests: dict[str, Manifest], finished: list[str], claims: Claims, workers: int
) -> None:
    """Compare the source with the digests of `--source-digests` that a finished release does not record as compared.

    A conversion compares while it reads, so there is something left to do only if all releases were complete before.
    What is found is said on stderr and not added to a manifest: reports and signatures name a manifest by its digest.

    Args:
        plan: what was asked for; its source is hashed.
        manifests: of every release in it, by folder name.
        finished: names of the releases that were complete before.
        claims: everything that is stated about the source.
        workers: threads that hash.

    Raises:
        CheckpointError: a file of the source differs from its digest, so the releases may have been made of damage.
    """
    given = {name: own for name, all_ in claims.items() if (own := tuple(c for c in all_ if c.by == "digest-file"))}
    unrecorded = [name for name in finished if not _records(manifests[name], given)]
    if not unrecorded:
        return
    if len(finished) == len(manifests):
        _compare(plan.source.files, given, unrecorded, workers)
    console.say(
        f"{', '.join(unrecorded)}: finished before these digests were given. {len(given)} files of the source agree "
        f"with them; the manifest is left as it is, because reports and signatures name it by its digest, and does not "
        f"record this. `flagrelease verify --source {plan.source.root}` proves that the weights are those of these "
        f"files; converting into another --out records the digests"
    )


def _records(manifest: Manifest, given: Claims) -> bool:
    recorded = {(record.path, record.algorithm, record.digest) for record in manifest.source.checked}
    return all((name, claim.algorithm, claim.digest) in recorded for name, claims in given.items() for claim in claims)


def _compare(files: CheckpointFiles, given: Claims, releases: list[str], workers: int) -> None:
    stop = threading.Event()
    try:
        with console.status(f"comparing {len(given)} files of {files.root} with their digests"):
            check = FileCheck(files, given)
            with ThreadPoolExecutor(workers) as pool:
                try:
                    for done in [pool.submit(check.work, stop.is_set) for _ in range(workers)]:
                        done.result()
                except BaseException:
                    stop.set()
                    raise
    except CheckpointError as error:
        names = ", ".join(releases)
        raise CheckpointError(f"{error}. The finished {names} may have been made of it: convert again") from error
