"""`convert_on`: the parts of a conversion as jobs of a cluster, watched until all are made, then merged.

What it knows of a part is in the part's folder, so nothing is lost with a machine: a job whose worker or node is gone
is started again and goes on from its journal. A job that is lost again and again without writing more ends the
conversion.
"""

from __future__ import annotations

import resource
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flagrelease.convert.planning.memory import memory_bound
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.earlier import PARTS_FOLDER
from flagrelease.convert.sharing.job import Made, Noted, PartJob, Refused, job_of, noted
from flagrelease.convert.sharing.merge import merge_parts
from flagrelease.convert.sharing.part_folder import DRIVER_LOCK_NAME, DRIVER_NAME, counts_in, require_count
from flagrelease.convert.sharing.shares import Share, divide
from flagrelease.durable.files import refused, write_whole
from flagrelease.durable.lock import FileLock
from flagrelease.errors import (
    CheckpointError,
    FlagReleaseError,
    LimitError,
    NetworkError,
    ResourceError,
    UsageError,
    VerificationError,
)
from flagrelease.records.manifest import MANIFEST_NAME, Manifest
from flagrelease.source.digests import Claims

LOST_IN_A_ROW = 3  # without a byte more written
GONE_SECONDS = 30.0  # that a cluster without a fitting node is waited for: a node may be starting again
LOCK_SECONDS = 180.0  # that a job that is started again waits for the lock of a node that is gone (NFS keeps it 90 s)
_KINDS: dict[str, type[FlagReleaseError]] = {
    error.kind: error
    for error in (UsageError, CheckpointError, ResourceError, VerificationError, NetworkError, LimitError)
}


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster that is alive, with what it has in all. The engine calls it `id`, people `name`."""

    id: str
    name: str
    cpus: int
    memory: int


@dataclass(frozen=True, slots=True)
class Need:
    """What every job declares."""

    cpus: int
    memory: int

    def fits(self, node: Node) -> bool:
        """Whether `node`, were it idle, could run a job."""
        return node.cpus >= self.cpus and node.memory >= self.memory


@dataclass(frozen=True, slots=True)
class Lost:
    """How a job ended that nobody heard of again: a worker or a node died."""

    why: str


class Cluster(Protocol):
    """What is asked of an engine."""

    def nodes(self) -> Sequence[Node]:
        """The machines that are alive."""
        ...

    def start(self, job: PartJob, need: Need) -> object:
        """Queue a job; returns what stands for it."""
        ...

    def wait(self, running: Sequence[object], seconds: float) -> Sequence[object]:
        """Those of `running` that have ended, after at most `seconds`."""
        ...

    def outcome(self, job: object) -> Made | Refused | Lost:
        """How an ended job ended."""
        ...

    def drop(self, job: object) -> None:
        """Expect nothing more of a job whose node is gone."""
        ...

    def cancel(self, running: Sequence[object]) -> None:
        """End jobs, and wait until they have."""
        ...


@dataclass(slots=True)
class _Work:
    """One part under way."""

    share: Share
    starts: int = 0
    lost: int = 0
    written_when_lost: int = 0


@dataclass(slots=True)
class _Watch:
    """All parts under way."""

    cluster: Cluster
    need: Need
    out: Path
    start: Callable[[_Work], object]
    say: Callable[[str], None]
    clock: Callable[[], float]
    running: dict[object, _Work] = field(default_factory=dict)
    made: dict[int, Made] = field(default_factory=dict)
    unfit_since: float | None = None

    def until_all_are_made(self, shares: Sequence[Share], progress: Callable[[int], None]) -> None:
        waiting = deque(_Work(share) for share in shares)
        while waiting or self.running:
            while waiting:
                work = waiting.popleft()
                work.starts += 1
                self.running[self.start(work)] = work
            for ended in self.cluster.wait(tuple(self.running), 1.0):
                work = self.running.pop(ended)
                if not self._is_made(work, self.cluster.outcome(ended)):
                    waiting.append(work)
            waiting += self._on_dead_nodes()
            progress(sum(self._written(share) for share in shares))
            self._require_nodes()

    def _is_made(self, work: _Work, outcome: Made | Refused | Lost) -> bool:
        if isinstance(outcome, Made):
            self.made[work.share.number] = outcome
            return True
        if isinstance(outcome, Refused):
            raise _KINDS[outcome.kind](outcome.message)
        note = noted(self.out, work.share)
        written, where = (note.written, f" on {note.host}") if note else (0, "")
        work.lost = 1 if written > work.written_when_lost else work.lost + 1
        work.written_when_lost = written
        if work.lost >= LOST_IN_A_ROW:
            raise ResourceError(
                f"part {work.share}: its worker was lost {work.lost} times without writing more, last{where} "
                f"({outcome.why}); what is written stays, the same command resumes"
            )
        self.say(f"part {work.share}: its worker was lost{where} ({outcome.why}); started again, it resumes")
        return False

    def _on_dead_nodes(self) -> list[_Work]:
        """The parts whose node is dead though their jobs have not ended: Ray 2.60 does not end a task on a node that is
        cut off from the network, although it knows the node to be dead."""
        alive, dead = {node.id for node in self.cluster.nodes()}, []
        for handle, work in list(self.running.items()):
            note = noted(self.out, work.share)
            if note is not None and note.start == work.starts and note.node not in alive:
                self.cluster.drop(handle)
                del self.running[handle]
                self._is_made(work, Lost("its node is dead"))
                dead.append(work)
        return dead

    def _written(self, share: Share) -> int:
        if share.number in self.made:
            return share.nbytes
        note: Noted | None = noted(self.out, share)
        return min(note.written, share.nbytes) if note else 0

    def _require_nodes(self) -> None:
        """A job that no node can run waits for ever; say so instead."""
        if not self.running or any(map(self.need.fits, self.cluster.nodes())):
            self.unfit_since = None
            return
        now = self.clock()
        self.unfit_since = now if self.unfit_since is None else self.unfit_since
        if now - self.unfit_since >= GONE_SECONDS:
            raise no_node(self.cluster.nodes(), self.need)


def need_of(plan: Plan, nodes: Sequence[Node], workers: int | None) -> Need:
    """What a job declares: its workers, and as much memory as planning took here beside that of the workers.

    `workers` None: as many as the smallest node has CPUs, so that every node can run a job."""
    cpus = workers or max(1, min((node.cpus for node in nodes if node.cpus), default=1))
    planning = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Need(cpus, planning + memory_bound(plan, cpus))


def no_node(nodes: Sequence[Node], need: Need) -> ResourceError:
    """The refusal where no node could run a job."""
    have = ", ".join(f"{node.name}: {node.cpus} CPUs, {node.memory:,} bytes" for node in nodes) or "none"
    return ResourceError(
        f"no node of the cluster has the {need.cpus} CPUs and {need.memory:,} bytes of memory that a job declares "
        f"(nodes: {have}); start such a node, or give fewer --workers. The same command resumes"
    )


def convert_on(
    cluster: Cluster,
    plan: Plan,
    out: Path,
    *,
    need: Need,
    count: int | None,
    progress: Callable[[int], None],
    say: Callable[[str], None],
    claims: Claims,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Manifest]:
    """Make the parts of `plan` on the nodes of `cluster` and merge them; resume what an earlier call began.

    Args:
        cluster: where jobs run. All its nodes see `out` and the checkpoint under the same paths.
        plan: all that is to be made.
        out: the folder of the releases.
        need: what a job declares; it runs as many workers as it has CPUs.
        count: parts; None: as many as there are already, else one for each node that can run a job.
        progress: called with the bytes written so far.
        say: told of jobs that are started again.
        claims: digests stated for files of the source.
        clock: seconds.

    Returns:
        The manifest of each release by folder name.

    Raises:
        FlagReleaseError: what a job refused, as on one machine.
        ResourceError: another conversion works in `out`, no node can run a job, a job was lost again and again.
    """
    if all((out / release.target.folder / MANIFEST_NAME).is_file() for release in plan.releases):
        return merge_parts(plan, out, workers=need.cpus, progress=progress)
    nodes = [node for node in cluster.nodes() if need.fits(node)]
    if not nodes:
        raise no_node(cluster.nodes(), need)
    begun = sorted(counts_in(out))
    parts = count or (begun[0] if begun else min(len(nodes), len(plan.files)))
    require_count(out, parts)
    shares = divide(plan, parts)
    folder = out / PARTS_FOLDER
    with refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / DRIVER_LOCK_NAME, out):
        token = secrets.token_hex(16)
        write_whole(folder / DRIVER_NAME, token.encode())

        def start(work: _Work) -> object:
            patience = LOCK_SECONDS if work.starts > 1 else 0.0
            job = job_of(plan, work.share, work.starts, out, token, need.cpus, claims, patience)
            return cluster.start(job, need)

        watch = _Watch(cluster, need, out, start, say, clock)
        try:
            watch.until_all_are_made(shares, progress)
        except BaseException:
            cluster.cancel(tuple(watch.running))
            raise
        just_written = [number for number, made in watch.made.items() if not made.complete_before]
        return merge_parts(plan, out, workers=need.cpus, progress=progress, just_written=just_written)
