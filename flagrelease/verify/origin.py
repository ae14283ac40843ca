"""The checkpoint that a release says it was made from, opened for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import read_config_bytes
from flagrelease.model.stored import StoredWeight, understand
from flagrelease.shard.files import CheckpointFiles, TensorReading
from flagrelease.shard.folder import in_folder
from flagrelease.shard.index import CheckpointIndex, open_files
from flagrelease.verify.expected import ExpectedWeight

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """A checkpoint: its config (checked, and the whole document), its tensors, and what each weight is.

    `reading` reads its tensors where they are not on this machine, while their bytes are compared.
    """

    files: CheckpointFiles
    config: FamilyConfig
    document: dict[str, Any]
    index: CheckpointIndex
    weights: dict[str, StoredWeight]
    reading: TensorReading | None = None

    @property
    def root(self) -> PurePath:
        """What messages call the checkpoint."""
        return self.files.root

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share one FP8 scale.

        Raises:
            CheckpointError: the config does not say.
        """
        if self.config.block_size is None:
            raise CheckpointError(f"{self.root / CONFIG}: quantization_config: missing, yet weights have scales")
        return self.config.block_size

    def stored(self, weight: ExpectedWeight) -> StoredWeight:
        """A weight as the source holds it, with its scale and format."""
        return self.weights[weight.spec.name]


def open_source(where: Path | CheckpointFiles) -> Origin:
    """Open the checkpoint in the folder `where`, or wherever its files are. Only headers and config.json are read.

    Raises:
        CheckpointError: it is not a sound DeepSeek-V4 checkpoint, or stores a weight in no declared form.
    """
    files = in_folder(where) if isinstance(where, Path) else where
    index = open_files(files)
    config, document = read_config_bytes(files.read(CONFIG), files.root / CONFIG)
    weights, problems = understand(index.tensors, config, files.root / CONFIG)
    if problems:
        raise CheckpointError(problems[0])
    return Origin(files, config, document, index, {weight.spec.name: weight for weight in weights})
