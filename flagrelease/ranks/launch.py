"""`launch`: run a command of this program on several ranks of this machine, and say how it ended.

It does what torchrun does for one machine, and three things that torchrun does not: the exit code is that of the rank
that failed first, only the leading rank is heard, and no rank is left behind, whatever ends the launcher.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from flagrelease.errors import FlagReleaseError, ResourceError
from flagrelease.log_file import current_log
from flagrelease.ranks.lifetime import RANK_LOST
from flagrelease.ranks.status import Status, read_status

_POLL = 0.02  # seconds between looks at the ranks
_PARTING = 30.0  # seconds that the others may take to end after the leader is done
_ENDING = 5.0  # seconds between asking a rank to end and killing it
_HEARING = 3.0  # seconds in which the leader may fail by itself after another rank has
_TAIL = 4000  # bytes shown of what a rank said before it failed


@dataclass(frozen=True, slots=True)
class _Member:
    rank: int
    process: subprocess.Popen[bytes]
    said: IO[bytes] | None  # None: the leader, who talks to the user directly

    def tail(self) -> str:
        """The last words of a rank that does not lead."""
        if self.said is None:
            return ""
        self.said.seek(max(0, self.said.seek(0, os.SEEK_END) - _TAIL))
        return self.said.read().decode(errors="replace").strip()


def launch(words: Sequence[str], ranks: int, *, interactive: bool = False, to_stderr: bool = False) -> Status:
    """Run `flagrelease WORDS` as `ranks` processes and wait for all of them. SIGINT and SIGTERM go to the leader.

    Args:
        words: of the command line.
        interactive: the leader reads this process's standard input; Ctrl-C in the terminal reaches it by itself.
        to_stderr: what the leader prints goes to stderr, because stdout is for another document.

    Returns:
        How the command ended. Errors of the leader, and the last words of another rank that failed by a bug, have
        been printed; an error of another rank (`rank` of the status is not 0) has not.

    Raises:
        ResourceError: a rank was killed, or does not end.
    """
    with tempfile.TemporaryDirectory(prefix="flagrelease-ranks-") as folder, _no_member_left() as members:
        path = Path(folder) / "status.json"
        port = _free_port()
        log = current_log()
        options = ["--status", str(path), *(() if log is None else ("--log-file", str(log)))]
        for rank in range(ranks):
            members.append(_start([*options, *words], rank, ranks, port, interactive, to_stderr))
        with _forwarding(members[0], interactive):
            first = _wait(members)
            if first is not None:
                _hear(members[0], first)
        return _status(path, first, members[0])


def _start(words: list[str], rank: int, ranks: int, port: int, interactive: bool, to_stderr: bool) -> _Member:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    command = [sys.executable, "-m", "flagrelease.ranks.member", str(os.getpid()), *words]
    if rank == 0:
        # In a session of its own the leader gets each signal once: from the launcher. A terminal's reader stays.
        stdin, stdout = (None if interactive else subprocess.DEVNULL), (2 if to_stderr else None)
        process = subprocess.Popen(
            command, env=environment, stdin=stdin, stdout=stdout, start_new_session=not interactive
        )
        return _Member(rank, process, None)
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the member
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
    )
    return _Member(rank, process, said)


def _wait(members: list[_Member]) -> _Member | None:
    """The first rank that ended badly, or None once all have ended well.

    A rank that was killed is named before one that failed at the same moment, which may have missed the killed one.
    """
    deadline: float | None = None
    while True:
        codes = [member.process.poll() for member in members]
        bad = [(code > 0, member.rank) for code, member in zip(codes, members, strict=True) if code]
        if bad:
            return members[min(bad)[1]]
        if None not in codes:
            return None
        if codes[0] == 0:
            deadline = deadline or time.monotonic() + _PARTING
            if time.monotonic() > deadline:
                late = codes.index(None)
                raise ResourceError(f"rank {late} does not end, though the leading rank is done")
        time.sleep(_POLL)


def _hear(leader: _Member, first: _Member) -> None:
    """Let the leader end by itself: where all ranks refuse what they find to differ it meets the same error.

    A server that leads is told when a rank was killed. It may hang in a step with that rank, or do nothing now.
    """
    if first is not leader and first.process.returncode < 0:
        leader.process.send_signal(RANK_LOST)
    try:
        leader.process.wait(_HEARING)
    except subprocess.TimeoutExpired:
        return


def _status(path: Path, first: _Member | None, leader: _Member) -> Status:
    written = read_status(path)
    if first is None:
        return written or Status(exit_code=0)
    code = first.process.returncode
    if code < 0 and (written is None or written.pid != first.process.pid):  # it had no time to say how it ended
        if first is leader and -code in (signal.SIGINT, signal.SIGTERM):
            return Status(exit_code=128 - code)  # it was asked to end, and ended without a word
        _show(first)
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            raise ResourceError(f"rank {first.rank} was killed ({name}): the system does that when memory runs out")
        raise FlagReleaseError(f"rank {first.rank} ended by {name}")
    if written is not None and written.exit_code:  # whoever failed first wrote it; others fail because of that one
        if written.rank != 0 and written.message is None:
            _show(first)
        if leader.process.returncode == written.exit_code:  # it met the same error, and has said so itself
            return written.model_copy(update={"rank": leader.rank})
        return written
    _show(first)
    return Status(exit_code=code, rank=first.rank)


def _show(member: _Member) -> None:
    for line in member.tail().splitlines():
        print(f"rank {member.rank}: {line}", file=sys.stderr)


@contextmanager
def _no_member_left() -> Iterator[list[_Member]]:
    members: list[_Member] = []
    try:
        yield members
    finally:
        for member in members:
            if member.process.poll() is None and member.rank == 0:
                member.process.terminate()
            elif member.process.poll() is None:
                member.process.kill()  # what is worth keeping is the leader's, and those of a server ignore SIGTERM
        until = time.monotonic() + _ENDING
        for member in members:
            try:
                member.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            if member.said is not None:
                member.said.close()


@contextmanager
def _forwarding(leader: _Member, interactive: bool) -> Iterator[None]:
    """SIGINT and SIGTERM for this process go to the leader, whose end is then the end of the command."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread receive signals
        return

    def forward(number: int, frame: FrameType | None) -> None:
        if not (interactive and number == signal.SIGINT):  # Ctrl-C has reached the leader already
            leader.process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
