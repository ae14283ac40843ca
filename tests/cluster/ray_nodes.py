"""A Ray cluster of two nodes on this machine, and waiting."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class TwoNodes:
    """A cluster whose first node stays, and whose second one comes and goes."""

    def __init__(self, python: Path, log: Path, *, cpus: tuple[int, int]) -> None:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE / 'slow'}", "RAY_DISABLE_IMPORT_WARNING": "1"}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, HERE / "two_nodes.py", *map(str, cpus)],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self.address = self._line()
        assert self.address, log.read_text()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def do(self, what: str) -> None:
        """`lose`, or `gain N`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._line() == "done"

    def close(self) -> None:
        self._process.communicate(timeout=120)  # its stdin ends


def until(what: Callable[[], object], seconds: float = 240.0) -> None:
    """Wait until `what()` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
