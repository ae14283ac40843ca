"""A small model with three DSpark stages, and what its tests share."""

from __future__ import annotations

from collections.abc import Sequence

from engine_checkpoint import random_tokens
from torch import Tensor

from flagrelease.engine.v4.model import Model

TOKENS = random_tokens(150, seed=5)
WINDOW = 128
CONTEXT = 160
STAGES = {
    "num_hidden_layers": 4, "compress_ratios": [0, 4, 128, 0, 0, 0, 0], "sliding_window": WINDOW, "index_n_heads": 8,
    "dspark_block_size": 5, "dspark_noise_token_id": 300, "dspark_target_layer_ids": [1, 2, 3],
    "dspark_markov_rank": 64,
}  # fmt: skip


def greedy(_: int, logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def features_of(model: Model, tokens: Sequence[int]) -> Tensor:
    """[S, targets H]."""
    return model.advance_watched(model.new_cache(1, CONTEXT), [tokens])[1][0]
