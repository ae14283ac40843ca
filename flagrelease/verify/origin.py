"""The checkpoint that a release says it was made from, opened for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.model.v4.config import ModelConfig, read_config
from flagrelease.model.v4.stored import StoredWeight, understand
from flagrelease.shard.index import CheckpointIndex, open_checkpoint
from flagrelease.verify.expected import ExpectedWeight

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """A checkpoint folder: its config (checked, and the whole document), its tensors, and what each weight is."""

    folder: Path
    config: ModelConfig
    document: dict[str, Any]
    index: CheckpointIndex
    weights: dict[str, StoredWeight]

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share one FP8 scale.

        Raises:
            CheckpointError: the config does not say.
        """
        if self.config.block_size is None:
            raise CheckpointError(f"{self.folder / CONFIG}: quantization_config: missing, yet weights have scales")
        return self.config.block_size

    def stored(self, weight: ExpectedWeight) -> StoredWeight:
        """A weight as the source holds it, with its scale and format."""
        return self.weights[weight.spec.name]


def open_source(folder: Path) -> Origin:
    """Open a checkpoint. Only headers and config.json are read.

    Raises:
        CheckpointError: it is not a sound DeepSeek-V4 checkpoint, or stores a weight in no declared form.
    """
    index = open_checkpoint(folder)
    config, document = read_config(folder / CONFIG)
    weights, problems = understand(index.tensors, config, folder / CONFIG)
    if problems:
        raise CheckpointError(problems[0])
    return Origin(folder, config, document, index, {weight.spec.name: weight for weight in weights})
