"""What tests of `--disk` share: a place that is a folder, a look at how much the disk holds, and a run."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.disk.conversion import convert_inside
from flagrelease.convert.planning.passes import plan_passes
from flagrelease.convert.planning.plan import Plan
from flagrelease.errors import NetworkError
from flagrelease.publish.publication import PublishedFile
from flagrelease.publish.staging.place import Place
from flagrelease.records.manifest import MANIFEST_NAME, Manifest


class FolderPlace:
    """A folder elsewhere. It has no part of the product in it and remembers nothing.

    Attributes:
        sent: names of files in the order in which they came.
        left: how many more files it takes; the next one is cut off in its middle.
    """

    def __init__(self, folder: Path, left: int = 10**9) -> None:
        self.folder, self.left, self.sent = folder, left, list[str]()

    @property
    def address(self) -> str:
        return "a folder"

    def whole(self, files: Sequence[PublishedFile]) -> set[str]:
        return {file.path for file in files if self._digest(file.path) == file.sha256}

    def send(self, files: Sequence[PublishedFile]) -> None:
        assert not (self.folder / MANIFEST_NAME).exists(), "it looks whole"
        self._put(files)

    def complete(self, files: Sequence[PublishedFile]) -> None:
        there = self.whole(files)
        manifest = [file for file in files if file.path == MANIFEST_NAME]
        self._put([file for file in files if file.path not in there and file not in manifest])
        self._put([file for file in manifest if file.path not in there])

    def _put(self, files: Sequence[PublishedFile]) -> None:
        for file in files:
            content = file.origin if isinstance(file.origin, bytes) else file.origin.read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256
            path = self.folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.left == 0:
                path.write_bytes(content[: len(content) // 2])
                raise NetworkError("the place was cut off")
            self.left -= 1
            path.write_bytes(content)
            self.sent.append(file.path)

    def _digest(self, path: str) -> str | None:
        place = self.folder / path
        return hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else None


def folder_places(plan: Plan, store: Path) -> dict[str, FolderPlace]:
    return {release.target.folder: FolderPlace(store / release.target.folder) for release in plan.releases}


def run_inside(
    plan: Plan, budget: int, out: Path, places: Mapping[str, Place], told: list[tuple[str, int]] | None = None
) -> dict[str, Manifest]:
    said = told if told is not None else []
    return convert_inside(
        plan, plan_passes(plan, budget), out, places, workers=2, lookup=cpu_lookup,
        progress=lambda done: said.append(("convert", done)), handed_over=lambda done: said.append(("hand over", done)),
    )  # fmt: skip


def held(out: Path) -> int:
    """Bytes of the files below `out`, by their sizes; one that vanishes meanwhile does not count."""
    total = 0
    for path in list(out.rglob("*")):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def watched(out: Path) -> Iterator[list[int]]:
    """The bytes that `out` held, looked at all the time by a thread."""
    seen: list[int] = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.004):
            seen.append(held(out) if out.exists() else 0)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        seen.append(held(out))
