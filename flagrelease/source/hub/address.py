"""`HubPath`: what a file of a hub's repository is called: `hf://OWNER/NAME@REVISION/config.json`."""

from __future__ import annotations

from pathlib import PurePosixPath


class HubPath(PurePosixPath):
    """A path whose first part is the scheme; of the slashes behind it a path keeps one, and `str` writes both."""

    __slots__ = ()

    def __str__(self) -> str:
        """With `://`."""
        return super().__str__().replace(":/", "://", 1)
