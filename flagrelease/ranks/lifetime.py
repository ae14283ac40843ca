"""How a rank ends: together with whoever started it, and with the exit code of its command.

Without the first, `kill -9` of torchrun leaves its ranks working, in the folder and on the devices that the next run
needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from flagrelease.ranks.job import ranks

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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


def end_failed_rank(exit_code: int) -> None:
    """If this process is one of several ranks and its command failed, end it here; otherwise nothing happens.

    A rank that fails is still connected to the others. While the interpreter shuts down, gloo's threads often abort
    such a process ("terminate called without an active exception"), and SIGABRT takes the place of the exit code.
    """
    if exit_code and ranks() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
