"""Which published model a checkpoint has the dimensions of, also if it was trained further or stored differently."""

from __future__ import annotations

from flagrelease.model.v4.config import ModelConfig

# (num_hidden_layers, hidden_size, n_routed_experts, moe_intermediate_size) -> the name that recipes give the model
_DIMENSIONS = {
    (43, 4096, 256, 2048): "DeepSeek-V4-Flash",
    (61, 7168, 384, 3072): "DeepSeek-V4-Pro",
    (5, 128, 16, 128): "flagrelease-tiny-v4",
}


def has_known_dimensions(name: str) -> bool:
    """Whether `published_name` would know the model called `name`."""
    return name in _DIMENSIONS.values()


def published_name(config: ModelConfig) -> str | None:
    """The model with these dimensions; None if it is none of those that recipes are shipped for."""
    return _DIMENSIONS.get(
        (config.num_hidden_layers, config.hidden_size, config.n_routed_experts, config.moe_intermediate_size)
    )
