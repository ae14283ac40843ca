"""`SourceIdentity`: which checkpoint this is. Two checkpoints of one architecture, such as two training steps, differ.

Convert binds its work to it, baselines record it, manifests and provenance name it. A folder's identity costs one read
of its headers, its config and a few MB of tensor data, and it is the same wherever the same files lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field

from flagrelease.errors import CheckpointError, VerificationError
from flagrelease.records.manifest import MANIFEST_NAME, SourceRecord, read_manifest
from flagrelease.shard.files import CheckpointFiles
from flagrelease.shard.folder import in_folder
from flagrelease.shard.header import TensorMeta
from flagrelease.shard.index import CheckpointIndex, open_files

# Whole tensors up to this size: in V4-Flash-0731 all norms, biases, sinks, hc vectors and small scales, 959 tensors of
# 1.8 MB. The next larger kind is the scales of experts, which would be 5.8 GB.
SMALL_BYTES = 32 << 10
# Of the larger ones, the beginning of one tensor of each dtype and shape in each file: a finetune that leaves every
# norm alone still changes some matrix. 731 reads, 3.0 MB, in V4-Flash-0731.
SAMPLE_BYTES = 4 << 10

_DIGEST = Field(pattern="^[0-9a-f]{64}$")


class SourceIdentity(BaseModel):
    """What tells a checkpoint from every other one.

    Attributes:
        headers_sha256: over names, sizes and header bytes of its safetensors files.
        config_sha256: of its config.json.
        contents_blake3: over all tensors of at most `SMALL_BYTES`, and a sample of `SAMPLE_BYTES` from larger ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    headers_sha256: str = _DIGEST
    config_sha256: str = _DIGEST
    contents_blake3: str = _DIGEST

    @property
    def digest(self) -> str:
        """SHA-256 over the three: the `source.identity` of manifests, and how recorded answers name a source."""
        parts = (self.headers_sha256, self.config_sha256, self.contents_blake3)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def difference(self, other: SourceIdentity) -> str | None:
        """In what `other` differs, in words; None if it is the same checkpoint."""
        if self.headers_sha256 != other.headers_sha256:
            return "names, sizes or headers of the tensor files differ"
        if self.config_sha256 != other.config_sha256:
            return "config.json differs"
        if self.contents_blake3 != other.contents_blake3:
            return "all headers are equal, but the values of the tensors differ: another training step or finetune"
        return None


def identify_checkpoint(files: CheckpointFiles, index: CheckpointIndex, config_sha256: str) -> SourceIdentity:
    """The identity of an opened checkpoint. Reads a few MB of tensor data.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = blake3()
    samples = list(_samples(index))
    with files.tensors(samples) as reader:
        for meta, count in samples:
            data = np.empty(count, dtype=np.uint8)
            reader.read(meta, 0, data)
            digest.update(f"{meta.name}\n{count}\n".encode())
            digest.update(data)
    return SourceIdentity(
        headers_sha256=index.headers_sha256(), config_sha256=config_sha256, contents_blake3=digest.hexdigest()
    )


def _samples(index: CheckpointIndex) -> Iterator[tuple[TensorMeta, int]]:
    """The tensors to read, and how many bytes from the beginning of each, in the order of files and offsets."""
    seen: set[tuple[PurePath, str, tuple[int, ...]]] = set()
    for meta in index.tensors.values():
        if meta.nbytes <= SMALL_BYTES:
            yield meta, meta.nbytes
        elif (kind := (meta.file, meta.dtype, meta.shape)) not in seen:
            seen.add(kind)
            yield meta, SAMPLE_BYTES


def identity_of_record(source: SourceRecord, where: Path) -> SourceIdentity:
    """The identity that a manifest records; `where` is for the message.

    Raises:
        VerificationError: the manifest is of schema 1, which recorded headers only.
    """
    if source.headers_sha256 is None or source.contents_blake3 is None:
        raise VerificationError(
            f"{where}: written by a flagrelease that recorded only the headers of its source, so it does not say which "
            f"training step it was made of; convert the checkpoint again"
        )
    return SourceIdentity(
        headers_sha256=source.headers_sha256,
        config_sha256=source.config_sha256,
        contents_blake3=source.contents_blake3,
    )


def identify(folder: Path) -> SourceIdentity:
    """The identity of the checkpoint in `folder`, or of the one that the release in `folder` was made of.

    Raises:
        VerificationError: a manifest that does not follow its schema, or that is too old to hold the identity.
        CheckpointError: no sound checkpoint.
    """
    if (folder / MANIFEST_NAME).is_file():
        return identity_of_record(read_manifest(folder).source, folder / MANIFEST_NAME)
    config = folder / "config.json"
    try:
        digest = hashlib.sha256(config.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{config}: cannot be read ({error.strerror})") from error
    files = in_folder(folder)
    return identify_checkpoint(files, open_files(files), digest)
