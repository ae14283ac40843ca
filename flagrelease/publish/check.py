"""The strictest check of a publication, for whoever still has the release and its records."""

from __future__ import annotations

from pathlib import Path

from flagrelease.console import progress
from flagrelease.errors import ResourceError
from flagrelease.publish.folder import list_folder
from flagrelease.publish.listing import Difference, compare
from flagrelease.publish.publication import Publication
from flagrelease.publish.upload.client import open_hub


def check_published(publication: Publication, endpoint: str | None = None) -> Difference:
    """What the target holds under the publication's tag, compared with what it should hold, by listing.

    Nothing is downloaded from a hub; a folder is hashed.

    Raises:
        NetworkError: there is no such repository or tag, or the hub does not answer.
        ResourceError: there is no such folder.
    """
    if publication.hub is not None:
        client = open_hub(publication.hub, endpoint)
        return compare(publication.by_path, client.list_files(publication.repo, publication.version))
    folder = Path(publication.repo)
    if not folder.is_dir():
        raise ResourceError(f"{folder}: not a folder")
    with progress("check", publication.bytes) as tracker:
        return compare(publication.by_path, list_folder(folder, tracker))
