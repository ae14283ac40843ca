"""`RayCluster`: an existing Ray cluster that runs the jobs. Nothing else imports ray.

Jobs are tasks, not actors: no state of theirs is worth more than what lies in the part's folder. Ray retries nothing
itself, so that every loss is seen and said. A job travels as bytes of plain values: the tensors stay in the files.
"""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import (
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskUnschedulableError,
)

from flagrelease.convert.sharing.driver import Lost, Need, Node
from flagrelease.convert.sharing.job import Made, PartJob, Refused, make_entry, version_and_code
from flagrelease.errors import ResourceError, UsageError

_END_SECONDS = 30.0  # that cancelled jobs get to close their files before their workers are killed


class RayCluster:
    """A connection to a cluster; use it as a context."""

    def __init__(self, address: str) -> None:
        """Connect to the cluster at `address`; `auto` is the one that this machine belongs to.

        Raises:
            UsageError: `address` is none.
            ResourceError: there is none, or it has another version of Ray or Python.
        """
        _require_answer(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise _unusable(address, error) from error
        self._entry: Any = ray.remote(_with_node(make_entry(*version_and_code())))

    def nodes(self) -> Sequence[Node]:
        """See `Cluster`."""
        return [
            Node(
                one["NodeID"],
                one["NodeManagerHostname"],
                int(one["Resources"].get("CPU", 0)),
                int(one["Resources"].get("memory", 0)),
            )
            for one in ray.nodes()
            if one["Alive"]
        ]

    def start(self, job: PartJob, need: Need) -> object:
        """See `Cluster`."""
        placed = self._entry.options(
            num_cpus=need.cpus,
            memory=need.memory,
            max_retries=0,
            scheduling_strategy="SPREAD",
            name=f"flagrelease part {job.part[0]}/{job.part[1]}",
        )
        return placed.remote(pickle.dumps(job))

    def wait(self, running: Sequence[object], seconds: float) -> Sequence[object]:
        """See `Cluster`."""
        ended, _ = ray.wait(list(running), num_returns=1, timeout=seconds)
        return list(ended)

    def outcome(self, job: object) -> Made | Refused | Lost:
        """See `Cluster`."""
        try:
            found = ray.get(job)
        except RayTaskError as error:
            if isinstance(error.cause, TaskCancelledError):
                return Lost("cancelled by somebody else")
            raise
        except (RuntimeEnvSetupError, TaskUnschedulableError) as error:
            return Refused("resource", f"Ray cannot run a job: {_first_line(error)}")
        except RayError as error:
            return Lost(f"{type(error).__name__}: {_first_line(error)}")
        if isinstance(found, tuple):
            return Refused(*found)
        outcome = pickle.loads(found)
        assert isinstance(outcome, Made | Refused)
        return outcome

    def drop(self, job: object) -> None:
        """See `Cluster`."""
        ray.cancel(job, force=True)

    def cancel(self, running: Sequence[object]) -> None:
        """See `Cluster`. A job is interrupted as by Ctrl-C; one that does not end in time is killed."""
        for force in (False, True):
            for job in running:
                ray.cancel(job, force=force)
            if not running:
                return
            _, running = ray.wait(list(running), num_returns=len(running), timeout=_END_SECONDS)

    def __enter__(self) -> RayCluster:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; the cluster stays."""
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself tries for two minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--cluster {address}: write HOST:PORT, as `ray start --head` says it")
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise _unusable(address, error) from error


def _unusable(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"Ray cluster {address}: cannot be used ({_first_line(error)}); start one with `ray start --head` on this "
        f"machine and `ray start --address` on the others, or give --cluster HOST:PORT"
    )


def _with_node(entry: Callable[[bytes, str], Any]) -> Callable[[bytes], Any]:
    """`entry`, told what Ray calls its node. A closure too, for the same reason."""

    def run(job: bytes) -> Any:
        import ray

        return entry(job, ray.get_runtime_context().get_node_id())

    return run


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
