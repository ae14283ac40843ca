"""`Place`: where the finished files of one release go, so that they can be deleted here.

A place is not a publication. What it holds was not validated, so no default branch shows it, and it has no manifest
until every other file is there with its digest. `publish`, with a passing report, makes a publication of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flagrelease.errors import VerificationError
from flagrelease.publish.publication import PublishedFile


@dataclass(frozen=True, slots=True)
class Staged:
    """A release that is to be staged.

    Attributes:
        folder: its name, `FORMAT-LAYOUT`.
        plan: digest of its plan: another plan never shares a place with it.
        names: of its tensor files.
        repo, model, licence: what the recipe says of it; None without a recipe. `licence` is an SPDX id.
    """

    folder: str
    plan: str
    names: frozenset[str]
    repo: str | None = None
    model: str | None = None
    licence: str | None = None


class Place(Protocol):
    """Where one release goes. Nothing is remembered on this side: what is there is asked of the place itself."""

    @property
    def address(self) -> str:
        """The place in words, for people and for the record that a folder is bound to."""
        ...

    def whole(self, files: Sequence[PublishedFile]) -> set[str]:
        """The paths of those of `files` that are there with this size and SHA-256. Their origins may be gone.

        Raises:
            NetworkError: the place does not answer.
        """
        ...

    def send(self, files: Sequence[PublishedFile]) -> None:
        """Put tensor files there; when this returns, the place has said that they are whole. A manifest goes first.

        Raises:
            VerificationError: the place does not hold what it was sent, or a file is not what its digest says.
            NetworkError: the place did not take them; what did pass stays.
        """
        ...

    def complete(self, files: Sequence[PublishedFile]) -> None:
        """Make the place hold exactly `files`: tensor files are there, documents are added, the manifest comes last.

        Raises:
            VerificationError, NetworkError: as `send`; or a tensor file is not there any more.
        """
        ...


def require_whole(place: Place, files: Sequence[PublishedFile]) -> None:
    """Refuse to believe that files were sent which the place does not list with their size and digest.

    Raises:
        VerificationError: names them.
    """
    there = place.whole(files)
    if missing := [file.path for file in files if file.path not in there]:
        raise VerificationError(f"{place.address}: does not hold what it was sent: {', '.join(missing)}")
