"""Which published models a checkpoint has the shape of, also if it was trained further or stored differently."""

from __future__ import annotations

from flagrelease.model.v4.config import ModelConfig

# (num_hidden_layers, hidden_size, n_routed_experts, moe_intermediate_size, whether its draft stages are DSpark's) ->
# the models of that shape. A recipe is shipped for the first.
_SHAPES = {
    (43, 4096, 256, 2048, False): ("DeepSeek-V4-Flash", "DeepSeek-V4-Flash-Base"),
    (43, 4096, 256, 2048, True): ("DeepSeek-V4-Flash-0731", "DeepSeek-V4-Flash-DSpark"),
    (61, 7168, 384, 3072, False): ("DeepSeek-V4-Pro", "DeepSeek-V4-Pro-Base"),
    (61, 7168, 384, 3072, True): ("DeepSeek-V4-Pro-0813", "DeepSeek-V4-Pro-DSpark"),
    (5, 128, 16, 128, False): ("flagrelease-tiny-v4",),
    (5, 128, 16, 128, True): ("flagrelease-tiny-v4-dspark",),
}
NAMES = frozenset(name for names in _SHAPES.values() for name in names)


def published_names(config: ModelConfig) -> tuple[str, ...]:
    """The published models of this shape; the first is the one that a recipe is shipped for. Empty if there is none."""
    return _SHAPES.get(
        (
            config.num_hidden_layers, config.hidden_size, config.n_routed_experts, config.moe_intermediate_size,
            config.is_dspark,
        ), ()
    )  # fmt: skip
