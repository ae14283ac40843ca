"""Rotary positions: frequencies with and without YaRN, and the table of their cosines and sines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.model.config import FamilyConfig


def frequencies(config: FamilyConfig, *, compressed: bool) -> Tensor:
    """FP32 [qk_rope_head_dim / 2]: radians per position of each pair of dimensions.

    Layers with compressed attention use compress_rope_theta and YaRN, for everything in them; sliding layers use
    rope_theta alone. YaRN here has no attention factor. Formula: DeepSeek's inference/model.py, precompute_freqs_cis.
    """
    dim = config.qk_rope_head_dim
    theta = config.compress_rope_theta if compressed else config.rope_theta
    freqs = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if not compressed:
        return freqs
    yarn = config.rope_scaling

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair that makes so many turns within the original context."""
        return dim * math.log(yarn.original_max_position_embeddings / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = float(min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1))
    if low == high:
        high += 0.001
    slow = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return freqs / yarn.factor * slow + freqs * (1 - slow)


@dataclass(frozen=True, slots=True)
class RopeTable:
    """cos and sin, FP32 [positions, qk_rope_head_dim / 2]."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def build(cls, config: FamilyConfig, positions: int, device: torch.device, *, compressed: bool) -> RopeTable:
        """The rows of positions 0 to `positions` - 1."""
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies(config, compressed=compressed))
        return cls(angles.cos().to(device), angles.sin().to(device))

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of `positions` [..] as [.., qk_rope_head_dim / 2]."""
        return self.cos[positions], self.sin[positions]
