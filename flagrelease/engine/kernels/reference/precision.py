"""The precision that the definitions compute in: FP32, or float64 where the caller gives float64."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in the precision that upstream computes in (FP32); float64 stays, for oracles without rounding."""
    return x if x.dtype == torch.float64 else x.float()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The accumulation dtype behind a result of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
