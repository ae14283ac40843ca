"""Kills `flagrelease` at a moment that a test chooses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def kill_when(words: list[str], ready: Callable[[], bool]) -> None:
    """Run flagrelease in a process of its own and kill it, without a chance to tidy up, when `ready` says so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flagrelease", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    until = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
