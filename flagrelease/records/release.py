"""`ReleaseOnDisk`: a release whose manifest was read once, and which is handed on from stage to stage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flagrelease.records.manifest import MANIFEST_NAME, Manifest, parse_manifest, read_manifest_bytes


@dataclass(frozen=True, slots=True)
class ReleaseOnDisk:
    """A finished release.

    Attributes:
        folder: where it is.
        manifest: what its `manifest.json` said when it was read.
        manifest_sha256: of the bytes that were read: it ties a report and a publication to this release.
    """

    folder: Path
    manifest: Manifest
    manifest_sha256: str

    @property
    def ranks(self) -> int:
        """How many ranks it is cut for; 1 for the hf layout."""
        return self.manifest.target.mp or 1


def read_release(folder: Path) -> ReleaseOnDisk:
    """Read the manifest of a release folder.

    Raises:
        VerificationError: there is none (an unfinished conversion), or it does not follow the schema.
    """
    content = read_manifest_bytes(folder)
    manifest = parse_manifest(content, str(folder / MANIFEST_NAME))
    return ReleaseOnDisk(folder, manifest, hashlib.sha256(content).hexdigest())
