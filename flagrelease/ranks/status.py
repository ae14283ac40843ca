"""`Status`: how a command ended, in a file, for whoever started it through something that loses the exit code.

torchrun exits with 1 whatever happened on its ranks, so a script could not tell a failed verification from a missing
device. With `flagrelease --status FILE COMMAND ...` the rank that fails first writes the file, or the leading rank when
the command is done.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flagrelease.durable.files import write_whole
from flagrelease.errors import FlagReleaseError, UsageError, VerificationError, first_problem
from flagrelease.ranks.job import is_leader, rank, ranks

BUG = 1  # exit code of an exception that nobody expected


class Status(BaseModel):
    """How a command ended.

    Attributes:
        exit_code: that the command would have had alone.
        kind: of the error, as `--json` has it; None if the command ended without one.
        message: of the error.
        rank: who wrote this, of `ranks` processes; `pid` on the machine `host`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    exit_code: int
    kind: str | None = None
    message: str | None = None
    rank: int = 0
    ranks: int = 1
    pid: int = 0
    host: str = ""

    def as_error(self) -> FlagReleaseError:
        """The error that ended the command, with its kind and exit code; names the rank if that does not lead."""
        error = FlagReleaseError(f"rank {self.rank}: {self.message}" if self.rank else self.message)
        error.exit_code, error.kind = self.exit_code, self.kind or error.kind
        return error


@dataclass(slots=True)
class Invocation:
    """One run of the command line: its words, and where its status goes, if anywhere."""

    words: tuple[str, ...]
    status: Path | None = None
    error: FlagReleaseError | None = None

    def report_to(self, path: Path) -> None:
        """Have the status written to `path`. The leader removes what an earlier run left there.

        Raises:
            UsageError: no file can be written there.
        """
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"--status {path}: no file can be written there")
        self.status = path
        if is_leader():
            path.unlink(missing_ok=True)

    def failed(self, status: Status) -> None:
        """The command ended as its ranks say: their error is this command's."""
        if status.message is not None:
            self.error = status.as_error()

    def ended(self, exit_code: int) -> None:
        """Write the status: of a failure if no rank has written one, of success if this rank leads.

        Raises:
            ResourceError: it cannot be written.
        """
        if self.status is None or (exit_code == 0 and not is_leader()) or self.status.exists():
            return
        kind: str | None = "internal" if exit_code == BUG else None
        message: str | None = None
        if self.error is not None:
            kind, message = self.error.kind, str(self.error)
        status = Status(
            exit_code=exit_code, kind=kind, message=message, rank=rank(), ranks=ranks(), pid=os.getpid(),
            host=os.uname().nodename,
        )  # fmt: skip
        own = self.status.with_name(f"{self.status.name}.{rank()}")
        write_whole(own, status.model_dump_json(indent=1).encode() + b"\n")
        try:
            os.link(own, self.status)  # unlike a rename, this fails where another rank was first
        except FileExistsError:
            return
        finally:
            own.unlink()


def read_status(path: Path) -> Status | None:
    """What a command wrote; None if it wrote nothing, as when it was killed.

    Raises:
        VerificationError: the file is no status.
    """
    try:
        return Status.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise VerificationError(f"{path}: {first_problem(error)}") from None
