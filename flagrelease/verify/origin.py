"""The checkpoint that a release says it was made from, opened for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.model.v4.config import ModelConfig, read_config
from flagrelease.shard.header import TensorMeta
from flagrelease.shard.index import CheckpointIndex, open_checkpoint
from flagrelease.verify.decoder import FP4_GROUP
from flagrelease.verify.expected import ExpectedWeight
from flagrelease.verify.gather import GatheredTensor, whole

_SCALE_DTYPES = ("F8_E8M0", "F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Origin:
    """A checkpoint folder: its config (checked, and the whole document) and its tensors."""

    folder: Path
    config: ModelConfig
    document: dict[str, Any]
    index: CheckpointIndex

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share one FP8 scale.

        Raises:
            CheckpointError: the config does not say.
        """
        if self.config.block_size is None:
            raise CheckpointError(
                f"{self.folder / 'config.json'}: quantization_config: missing, yet weights have scales"
            )
        return self.config.block_size

    def stored(self, weight: ExpectedWeight) -> tuple[GatheredTensor, GatheredTensor | None]:
        """A weight and its scale as the source holds them.

        Raises:
            CheckpointError: one is missing, or their dtypes and shapes are not those of a format.
        """
        meta = self._meta(weight.spec.name)
        if weight.source_scale is None:
            _require(meta, meta.shape == weight.spec.shape, f"must have shape {list(weight.spec.shape)}")
            return whole(meta), None
        scale = self._meta(weight.source_scale)
        rows, columns = weight.spec.shape
        if meta.dtype == "I8":
            _require(meta, meta.shape == (rows, columns // 2), f"packed FP4 must be [{rows}, {columns // 2}]")
            fits = scale.dtype == "F8_E8M0" and scale.shape == (rows, columns // FP4_GROUP)
            _require(scale, fits, f"must be F8_E8M0 [{rows}, {columns // FP4_GROUP}]")
            return whole(meta), whole(scale)
        _require(
            meta, meta.dtype == "F8_E4M3" and meta.shape == (rows, columns), f"must be F8_E4M3 [{rows}, {columns}]"
        )
        height, width = self.block
        blocks = (-(-rows // height), -(-columns // width))
        fits = scale.dtype in _SCALE_DTYPES and scale.shape == blocks
        _require(scale, fits, f"must be {' or '.join(_SCALE_DTYPES)} {list(blocks)}")
        return whole(meta), whole(scale)

    def _meta(self, name: str) -> TensorMeta:
        if name not in self.index.tensors:
            raise CheckpointError(f"{self.folder}: tensor {name!r}: missing")
        return self.index.tensors[name]


def _require(meta: TensorMeta, holds: bool, rule: str) -> None:
    if not holds:
        raise CheckpointError(f"{meta.file}: tensor {meta.name!r}: is {meta.dtype} {list(meta.shape)}, {rule}")


def open_source(folder: Path) -> Origin:
    """Open a checkpoint.

    Raises:
        CheckpointError: it is not a sound DeepSeek-V4 checkpoint.
    """
    index = open_checkpoint(folder)
    config, document = read_config(folder / "config.json")
    return Origin(folder, config, document, index)
