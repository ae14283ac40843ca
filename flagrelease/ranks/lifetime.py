"""How a rank ends: together with whoever started it, and with the exit code of its command.

Without the first, `kill -9` of torchrun leaves its ranks working, in the folder and on the devices that the next run
needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from flagrelease.errors import ResourceError
from flagrelease.ranks.job import ranks

RANK_LOST = signal.SIGUSR1  # launch.py sends it to the leader when another rank has died
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_launched = False


class LostRankError(ResourceError):
    """Another rank has ended, so this one cannot go on."""

    def __init__(self) -> None:
        """The words are the same on every rank, so that torchrun's ranks say them once."""
        super().__init__("another rank of the job has ended, and the connection to it is lost")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the process `parent`, which started it, ends in whatever way.

    Only Linux can do that; elsewhere nothing happens. If `parent` has ended already, this process ends here.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_torchrun() -> None:
    """If torchrun started this process, end with torchrun, even if torchrun is killed without a chance to tidy up."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with(os.getppid())


def begin_launched_rank(launcher: int) -> None:
    """Make this process a rank of launch.py, whose process is `launcher`: it ends with the launcher.

    `RANK_LOST` does nothing unless the command has something to do about it.
    """
    global _launched
    _launched = True
    signal.signal(RANK_LOST, signal.SIG_IGN)
    die_with(launcher)


def is_launched() -> bool:
    """Whether launch.py started this process, and will say which rank has died."""
    return _launched


def end_failed_rank(exit_code: int) -> None:
    """If this process is one of several ranks and its command failed, end it here; otherwise nothing happens.

    A rank that fails is still connected to the others. While the interpreter shuts down, gloo's threads often abort
    such a process ("terminate called without an active exception"), and SIGABRT takes the place of the exit code.
    """
    if exit_code and ranks() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
