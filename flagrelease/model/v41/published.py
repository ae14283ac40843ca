"""Which published models a checkpoint of DeepSeek-V4.1 has the shape of."""

from __future__ import annotations

from flagrelease.model.v41.config import V41Config

# (num_hidden_layers, hidden_size, n_routed_experts, moe_intermediate_size) -> the models of that shape.
_SHAPES = {(40, 5120, 384, 2304): ("DeepSeek-V4.1-Flash", "DeepSeek-V4.1-Flash-1017")}
NAMES = frozenset(name for names in _SHAPES.values() for name in names)


def published_names(config: V41Config) -> tuple[str, ...]:
    """The published models of this shape; the first is the one that a recipe is shipped for. Empty if there is none."""
    shape = config.num_hidden_layers, config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    return _SHAPES.get(shape, ())
