"""The efforts of a release or checkpoint on disk, from what it carries."""

from __future__ import annotations

from pathlib import Path

from flagrelease.model.families import family_of, read_config
from flagrelease.model.v4.efforts import Efforts
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest


def read_efforts(release: Path | str) -> Efforts:
    """Find out which revision of the model a folder holds, and what it makes of the efforts that requests name.

    Raises:
        CheckpointError: the folder has no config of a model.
        VerificationError: its manifest does not follow the schema.
    """
    release = Path(release)
    config, _ = read_config(release / "config.json")
    names: list[str | None] = []
    if (release / MANIFEST_NAME).is_file():
        manifest = read_manifest(release)
        names = [manifest.source.repo, manifest.model]
    return family_of(config).efforts(release, config, [name for name in names if name is not None])
