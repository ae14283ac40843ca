"""`Crashes`: stops a program at the n-th of its calls that change the disk, as a kill or a power failure does."""

from __future__ import annotations

import builtins
import io
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

CHANGING = (
    "pwrite", "pwritev", "write", "writev", "fsync", "fdatasync", "ftruncate", "truncate", "posix_fallocate", "replace",
    "rename", "link", "symlink", "unlink", "remove", "rmdir", "mkdir", "makedirs", "utime", "chmod", "copy_file_range",
    "sendfile",
)  # fmt: skip


class Crash(BaseException):
    """The machine stops here: no handler of the program may run its own course after it."""


class Crashes:
    """Counts the calls that change the disk, the creation of files among them; after `arm(n)` the n-th raises, and
    every later one does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.seen: list[str] = []
        self._stop_at: int | None = None
        self._lock = threading.Lock()
        for name in CHANGING:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        monkeypatch.setattr(
            os, "open", self._counted("open", os.open, lambda path, flags, *rest, **more: _makes(flags))
        )
        opened = self._counted("open", builtins.open, lambda file, mode="r", *rest, **more: set(mode) & set("wax+"))
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)  # pathlib's

    def arm(self, stop_at: int) -> None:
        self.calls, self._stop_at = 0, stop_at

    def disarm(self) -> None:
        self._stop_at = None

    def _counted(
        self, name: str, function: Callable[..., Any], counts: Callable[..., Any] = lambda *a, **k: True
    ) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if counts(*args, **kwargs):
                with self._lock:
                    self.calls += 1
                    self.seen.append(name)
                    if self._stop_at is not None and self.calls >= self._stop_at:
                        raise Crash
            return function(*args, **kwargs)

        return call


def _makes(flags: int) -> bool:
    return bool(flags & (os.O_CREAT | os.O_TRUNC))
