"""Which model a folder holds: the same for a source checkpoint and for every release made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from blake3 import blake3
from pydantic import BaseModel, ConfigDict

from flagrelease.errors import CheckpointError, VerificationError
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest
from flagrelease.shard.index import open_checkpoint
from flagrelease.shard.reader import TensorReader

_NORM = "norm.weight"  # stored unquantised everywhere, and another one in every training run


class ModelIdentity(BaseModel):
    """`config_sha256`: of the source's config.json. `identity`: of its names, sizes and headers, as in manifests.
    `norm_blake3`: of the data of its final norm, which tells checkpoints of one architecture apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    config_sha256: str
    identity: str
    norm_blake3: str


def identify(folder: Path) -> ModelIdentity:
    """Of a release, from its manifest; of a source checkpoint, from its files.

    Raises:
        VerificationError: a manifest that does not follow its schema, or does not name the final norm.
        CheckpointError: no sound checkpoint.
    """
    if (folder / MANIFEST_NAME).is_file():
        source = read_manifest(folder).source
        if _NORM not in source.tensors:
            raise VerificationError(f"{folder / MANIFEST_NAME}: source.tensors: {_NORM!r} is missing")
        return ModelIdentity(
            config_sha256=source.config_sha256, identity=source.identity, norm_blake3=source.tensors[_NORM]
        )
    index = open_checkpoint(folder)
    if _NORM not in index.tensors:
        raise CheckpointError(f"{folder}: tensor {_NORM!r} is missing")
    meta = index.tensors[_NORM]
    data = np.empty(meta.nbytes, dtype=np.uint8)
    with TensorReader() as reader:
        reader.read(meta, 0, data)
    try:
        config = (folder / "config.json").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error.strerror}") from error
    return ModelIdentity(
        config_sha256=hashlib.sha256(config).hexdigest(),
        identity=index.identity(),
        norm_blake3=blake3(data).hexdigest(),
    )
