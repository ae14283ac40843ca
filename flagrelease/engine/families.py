"""The families that the engine runs, chosen by `model_type`: what builds a model of each, and its numerics."""

from __future__ import annotations

from pathlib import Path

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.numerics import Numerics, NumericsName
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v41.model import V41Model
from flagrelease.engine.weights import Weights
from flagrelease.errors import UsageError
from flagrelease.model.config import FamilyConfig
from flagrelease.model.v4.config import ModelConfig
from flagrelease.model.v41.config import V41Config

_V41_NUMERICS = frozenset[NumericsName](("native", "fp8", "bf16"))


def build_model(
    folder: Path, weights: Weights, config: FamilyConfig, numerics: Numerics, ops: Operators, groups: Groups,
    device: Device, *, mtp: bool,
) -> AnyModel:  # fmt: skip
    """The model of a release in `folder`. `mtp`: with its draft stages.

    Raises:
        UsageError: the family's pass has no such numerics, or no such draft stages; nothing was read.
        CheckpointError: what stands beside the tensors is not this model's.
    """
    if isinstance(config, V41Config):
        if numerics.name not in _V41_NUMERICS:
            known = ", ".join(sorted(_V41_NUMERICS))
            raise UsageError(f"numerics {numerics.name!r}: the engine runs DeepSeek-V4.1 with {known}")
        return V41Model.build(weights, config, numerics, ops, groups, device, folder, mtp=mtp)
    assert isinstance(config, ModelConfig), "a family that was refused before"
    return Model.build(weights, config, numerics, ops, groups, device, mtp=mtp)
