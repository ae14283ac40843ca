"""This process's place among its ranks, as the environment says it: torchrun's variables, which launch.py sets too."""

from __future__ import annotations

import os


def rank() -> int:
    """Which rank this process is; 0 for a process alone."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many processes belong to the job; 1 for a process alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_leader() -> bool:
    """Whether this process does the work and talks to the user. The other ranks only hold their part of the model."""
    return rank() == 0


def local_rank() -> int:
    """Which device of this machine the process has; a process alone has the first."""
    return int(os.environ.get("LOCAL_RANK", "0"))
