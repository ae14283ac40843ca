"""`convert`: from a plan to complete releases, in one pass over the source."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flagrelease.convert.codecs.lookup import Lookup, cpu_lookup
from flagrelease.convert.planning.files import OutputFile
from flagrelease.convert.planning.memory import BUFFERS_PER_WORKER, CHUNK_BYTES
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.assembly import assemble
from flagrelease.convert.running.buffers import Buffers, Run
from flagrelease.convert.running.checking import begin_check
from flagrelease.convert.running.earlier import refuse_other_source, refuse_parts
from flagrelease.convert.running.journal import Journal, open_journal
from flagrelease.convert.running.lanes import Lane, LaneSink
from flagrelease.convert.running.schedule import Schedule
from flagrelease.convert.running.work import run_job
from flagrelease.errors import ResourceError, UsageError
from flagrelease.records.manifest import Manifest, read_manifest
from flagrelease.source.digests import Claims, stated_claims
from flagrelease.source.file_check import FileCheck

# A thread hashes 0.9 GB/s of the source, and four workers decode as much, where their files are hashed fast enough.
WORKERS_PER_HASHING_THREAD = 4
Progress = Callable[[int], None]  # bytes written so far, of `Plan.bytes_to_write`


def convert(
    plan: Plan, out: Path, *, workers: int, lookup: Lookup, progress: Progress, claims: Claims | None = None
) -> dict[str, Manifest]:
    """Write all releases of `plan` under `out`; resume what an earlier call began, leave alone what it completed.

    Args:
        plan: what to write.
        out: the folder that holds one folder a release.
        workers: threads that decode; every open file has a writing thread of its own beside them.
        lookup: where decoding runs.
        progress: called with the bytes written so far: first with those of earlier runs, then now and then.
        claims: digests that are stated for files of the source; None: those that its place states.

    Returns:
        The manifest of each release by folder name.

    Raises:
        UsageError: a release would be written into the checkpoint, or around it.
        ResourceError: no space, or a folder that holds something else, another plan, or another running conversion.
        CheckpointError: the data hold what no header shows: NaN, a loss that the recipe does not allow; or a
            file of the source is not what a claim says.
    """
    stated = stated_claims(plan.source.files) if claims is None else claims
    for release in plan.releases:
        require_apart(plan.source.files.folder, out / release.target.folder)
    journals: dict[int, Journal] = {}
    try:
        for number, release in enumerate(plan.releases):
            refuse_other_source(out / release.target.folder, plan.source, stated)
            refuse_parts(out, release.target.folder)
            journal = open_journal(out / release.target.folder, plan, release)
            if journal is not None:
                journals[number] = journal
        if journals:
            check = begin_check(plan.source.files, stated, journals)
            write_files(plan, out, journals, workers, lookup, progress, check)
            for number, journal in journals.items():
                folder = out / plan.releases[number].target.folder
                assemble(plan, plan.releases[number], folder, journal, check.records())
        else:
            progress(plan.bytes_to_write)
    finally:
        for journal in journals.values():
            journal.close()
    return {r.target.folder: read_manifest(out / r.target.folder) for r in plan.releases}


def write_files(
    plan: Plan,
    out: Path,
    journals: dict[int, Journal],
    workers: int,
    lookup: Lookup,
    progress: Progress,
    check: FileCheck,
    *,
    compared: Collection[str] | None = None,
    elsewhere: Collection[int] = (),
    finished: Callable[[OutputFile], None] = lambda file: None,
) -> None:
    """Write the files of `plan` that belong to releases with a journal, and record their tensors.

    Args:
        plan: what to write; it may hold only some of the files of its releases.
        out, workers, lookup, progress: as for `convert`.
        journals: by index into `Plan.releases`.
        check: compares the source beside the work.
        compared: the files that it compares now; None: all that are left.
        elsewhere: indexes of files that are not to be written; their tensors are recorded all the same.
        finished: called by any thread as soon as a file is whole on the disk and recorded, also if an earlier run had
            finished it. What it raises ends the work.

    Raises:
        FlagReleaseError: as for `convert`, or what `finished` raises.
    """
    run = Run()
    lanes = {
        n: Lane(run, f, journals[f.release], finished)
        for n, f in enumerate(plan.files)
        if f.release in journals and n not in elsewhere
    }
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(Lane.recover, lanes.values()))
    done = sum(lane.resume_at for lane in lanes.values())
    done += sum(release.size for number, release in enumerate(plan.releases) if number not in journals)
    _require_space(out, _space_needed(plan, journals, lanes))
    progress(done)  # what earlier runs have written
    schedule = Schedule(run, plan, lanes, journals, files_at_once=workers)
    buffers = Buffers(run, workers * BUFFERS_PER_WORKER, CHUNK_BYTES, schedule.standing)
    with plan.source.files.tensors() as reader:

        def work() -> None:
            try:
                while (number := schedule.take()) is not None:
                    job, sink = plan.jobs[number], LaneSink(buffers, lanes, number)
                    for result in run_job(job, reader.read, sink, lookup, plan.options):
                        schedule.record(job, result)
                    schedule.done(number)
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                run.stop(error)

        def hash_sources() -> None:
            try:
                check.work(lambda: run.stopped, compared)
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                run.stop(error)

        threads = [threading.Thread(target=work, name=f"worker {n}", daemon=True) for n in range(workers)]
        if check.pending(compared):
            hashing = max(1, workers // WORKERS_PER_HASHING_THREAD)
            threads += [threading.Thread(target=hash_sources, name=f"hash {n}", daemon=True) for n in range(hashing)]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(timeout=0.1 / workers)
                progress(done + run.written)
        except BaseException:
            run.stop()
            raise
        finally:
            for thread in threads:
                thread.join()
            for lane in lanes.values():
                lane.close()
            progress(done + run.written)
    if run.error is not None:
        raise run.error


def _space_needed(plan: Plan, journals: dict[int, Journal], lanes: dict[int, Lane]) -> int:
    """Bytes that the disk must still give. Documents are written anew by every run."""
    documents = sum(plan.releases[number].documents.size for number in journals)
    return documents + sum(lane.space_needed() for lane in lanes.values())


def require_apart(checkpoint: Path | None, release: Path) -> None:
    """A release inside the checkpoint would become a part of its own source at the next conversion."""
    if checkpoint is None:
        return
    source, target = checkpoint.resolve(), release.resolve()
    if target.is_relative_to(source):
        raise UsageError(f"{release}: lies inside the checkpoint {checkpoint}; give an --out outside of it")
    if source.is_relative_to(target):
        raise UsageError(f"{checkpoint}: the checkpoint lies inside the release's folder {release}; give another --out")


def _require_space(out: Path, needed: int) -> None:
    existing = out
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(f"{out}: {needed:,} bytes are still to be written, {free:,} are free")


def choose_lookup(device: str) -> Lookup:
    """Where decoding runs: `cpu` or `cuda`. `auto` is the CPU: a look-up is bound by memory there as well, and the way
    to a device and back costs more than it.

    Raises:
        ResourceError: `cuda` is asked for and there is no such device.
    """
    if device in {"auto", "cpu"}:
        return cpu_lookup
    from flagrelease.convert.codecs.gpu import DeviceLookup  # torch takes a second to load
    from flagrelease.device import open_device

    return DeviceLookup(open_device(device))
