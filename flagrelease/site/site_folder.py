"""The folder of a site: written beside its place and put there when it is whole, so that nobody sees half of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType

from flagrelease import __version__
from flagrelease.durable.files import refused
from flagrelease.errors import ResourceError
from flagrelease.site.folder import MARK


class SiteFolder:
    """Collects pages, as a context; `finish` puts them in place of what an earlier call left there."""

    def __init__(self, out: Path) -> None:
        """Begin a site that will be `out`.

        Raises:
            ResourceError: `out` is there and is not a site, so it is not replaced.
        """
        if os.path.lexists(out) and not (out.is_dir() and ((out / MARK).is_file() or not any(out.iterdir()))):
            raise ResourceError(f"{out}: is there and was not written by `flagrelease site`; name another folder")
        self.out = out
        self._work = out.absolute().with_name(f".{out.absolute().name}.unfinished")
        self.pages, self.bytes = 0, 0
        with refused(self._work):
            shutil.rmtree(self._work, ignore_errors=True)  # of a call that was killed
            self._work.mkdir(parents=True)

    def __enter__(self) -> SiteFolder:
        """Nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not finished; an earlier site stays as it was."""
        shutil.rmtree(self._work, ignore_errors=True)

    def add(self, path: str, content: bytes) -> None:
        """Write a file of the site. `path` is below its root, with forward slashes.

        Raises:
            ResourceError: it cannot be written.
        """
        place = self._work / path
        with refused(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        self.pages += path.endswith(".html")
        self.bytes += len(content)

    def finish(self) -> None:
        """Put the site in its place.

        Raises:
            ResourceError: it cannot be put there.
        """
        mark = {"made_by": f"flagrelease {__version__}", "pages": self.pages}
        self.add(MARK, json.dumps(mark, indent=1).encode() + b"\n")
        old = self._work.with_name(f".{self._work.name}.old")
        with refused(self.out):
            shutil.rmtree(old, ignore_errors=True)
            if self.out.is_dir():
                self.out.rename(old)
            self._work.rename(self.out)
        shutil.rmtree(old, ignore_errors=True)
