"""`PartJob`: one part as a job for another machine, and what that machine does with it.

A job says what to plan, not the plan: the machine reads the headers itself and must come to the same plan. Nothing is
kept between jobs, and a job that is started again anywhere goes on from its part's journal.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import flagrelease
from flagrelease import __version__
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import Plan, Provenance, make_plan
from flagrelease.convert.planning.target import Target
from flagrelease.convert.running.earlier import PARTS_FOLDER
from flagrelease.convert.sharing.part import convert_part
from flagrelease.convert.sharing.part_folder import DRIVER_NAME, PROGRESS_NAME, folder_of
from flagrelease.convert.sharing.shares import Share, divide
from flagrelease.durable.files import write_whole
from flagrelease.durable.lock import InUseError
from flagrelease.errors import FlagReleaseError, ResourceError
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.digests import Claims
from flagrelease.source.source import read_source

_SEE_SECONDS = 10.0  # network file systems show a new file late
_TOLD_EVERY = 1.0  # seconds between two notes of the progress


@dataclass(frozen=True, slots=True)
class PartJob:
    """A part to make.

    Attributes:
        files: of the checkpoint; read on the machine that runs the job.
        plan: digest of the plan that the machine must come to.
        part: (I, N).
        start: how often the part was started by now; its notes say so.
        token: what OUT/parts/driver holds on a machine that sees this OUT.
        patience: seconds to wait for the part's lock, which a node that died may still hold.
    """

    files: CheckpointFiles
    targets: tuple[Target, ...]
    options: ConvertSpec
    provenance: Provenance
    plan: str
    part: tuple[int, int]
    start: int
    out: Path
    token: str
    workers: int
    claims: Claims
    patience: float


@dataclass(frozen=True, slots=True)
class Made:
    """How a job ended well."""

    complete_before: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """How a job ended with an error that a user understands: `kind` is that of `FlagReleaseError`."""

    kind: str
    message: str


def digest_of(plan: Plan) -> str:
    """Of everything that is planned, the checkpoint's identity included."""
    return hashlib.sha256("\n".join(release.digest for release in plan.releases).encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over the package's source files: two machines with one version number may have different code."""
    digest = hashlib.sha256()
    folder = Path(flagrelease.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def make_entry(version: str, code: str) -> Callable[[bytes, str], tuple[str, str] | bytes]:
    """The function that is sent to another machine with a pickled job. It depends on no module of flagrelease before it
    has compared the version there, so it is a closure, which is sent by its code and not by its name. Its second
    argument is what the engine calls the machine.

    Returns a pickled `Made` or `Refused`, or (kind, message) where there is no flagrelease that could make one.
    """

    def run(job: bytes, node: str) -> tuple[str, str] | bytes:
        import socket

        where = socket.gethostname()
        try:
            from flagrelease import __version__ as there
            from flagrelease.convert.sharing import job as ours
        except ImportError as error:
            return "resource", f"{where}: flagrelease cannot be imported there ({error}); install it on every node"
        if there != version:
            return (
                "resource",
                f"{where}: has flagrelease {there}, this machine {version}; install one version everywhere",
            )
        if ours.code_digest() != code:
            return "resource", (
                f"{where}: has flagrelease {there} with other code than this machine; install one build everywhere"
            )
        return ours.run_pickled(job, node)

    return run


def run_pickled(job: bytes, node: str) -> bytes:
    """Run a pickled job on this machine; returns a pickled `Made` or `Refused`."""
    return pickle.dumps(run_job(pickle.loads(job), node))


def run_job(job: PartJob, node: str) -> Made | Refused:
    """Make the part of `job` on this machine, which its engine calls `node`."""
    try:
        return _make(job, node)
    except FlagReleaseError as error:
        return Refused(error.kind, f"{error} (part {job.part[0]}/{job.part[1]} on {socket.gethostname()})")
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return Refused("resource", f"{where}{error.strerror or error} ({socket.gethostname()})")


def _make(job: PartJob, node: str) -> Made:
    _require_shared(job.out, job.token)
    note = _Note(job, node)
    plan = make_plan(read_source(job.files), job.targets, job.options, job.provenance)
    if digest_of(plan) != job.plan:
        raise ResourceError(
            f"{job.files.root}: makes another plan here than where the conversion was started; all nodes must see the "
            f"same checkpoint"
        )
    share = divide(plan, job.part[1])[job.part[0] - 1]
    deadline = time.monotonic() + job.patience
    while True:
        try:
            result = convert_part(
                plan, share, job.out, workers=job.workers, lookup=cpu_lookup, progress=note.write, claims=job.claims
            )
            return Made(result.complete_before)
        except InUseError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1.0)


def _require_shared(out: Path, token: str) -> None:
    """Refuse a machine on which `out` is not the folder of the machine that started the conversion."""
    path = out / PARTS_FOLDER / DRIVER_NAME
    deadline = time.monotonic() + _SEE_SECONDS
    while not path.is_file() or path.read_text(encoding="utf-8") != token:
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{out}: is not the same folder on every node; --executor ray needs a file system that all nodes share "
                f"under one path. Without one, use --part and --merge (docs/cluster.md)"
            )
        time.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Noted:
    """What a job noted last in its part's folder.

    Attributes:
        written: bytes of the part.
        start: of the job.
        process, host: where it runs.
        node: what the engine calls that machine.
    """

    written: int
    start: int
    process: int
    host: str
    node: str


class _Note:
    """Writes the notes of a job: the first at once, so that its driver knows where it is, then one a second."""

    def __init__(self, job: PartJob, node: str) -> None:
        self._path = job.out / PARTS_FOLDER / f"{job.part[0]}-of-{job.part[1]}" / PROGRESS_NAME
        self._about = f"{job.start} {os.getpid()} {socket.gethostname()} {node}\n"
        before = _read_note(self._path)
        self._path.parent.mkdir(exist_ok=True)
        self._write(before.written if before else 0)

    def write(self, done: int) -> None:
        if time.monotonic() - self._said >= _TOLD_EVERY:
            self._write(done)

    def _write(self, done: int) -> None:
        self._said = time.monotonic()
        write_whole(self._path, f"{done} {self._about}".encode())


def noted(out: Path, share: Share) -> Noted | None:
    """What the job of a part noted last; None before the first note."""
    return _read_note(folder_of(out, share) / PROGRESS_NAME)


def _read_note(path: Path) -> Noted | None:
    try:
        written, start, process, host, node = path.read_text(encoding="utf-8").split()
        return Noted(int(written), int(start), int(process), host, node)
    except (OSError, ValueError):  # absent, or hidden for a moment by a network file system
        return None


def job_of(
    plan: Plan, share: Share, start: int, out: Path, token: str, workers: int, claims: Claims, patience: float
) -> PartJob:
    """The job that makes `share` of `plan`."""
    return PartJob(
        files=plan.source.files,
        targets=tuple(release.target for release in plan.releases),
        options=plan.options,
        provenance=plan.provenance,
        plan=digest_of(plan),
        part=(share.number, share.count),
        start=start,
        out=out.absolute(),
        token=token,
        workers=workers,
        claims=claims,
        patience=patience,
    )


def version_and_code() -> tuple[str, str]:
    """What a node must have."""
    return __version__, code_digest()
