"""Providers of the operators, chosen by name: `torch`, `triton`, `auto`, `flag_gems`."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from flagrelease.engine.kernels.operators import Operators
from flagrelease.errors import UsageError

ProviderName = Literal["torch", "triton", "auto", "flag_gems"]


def load_provider(name: str, device: torch.device) -> Operators:
    """The operators of the named provider for tensors on `device`.

    `torch` is the definition and runs everywhere. `auto` is the fastest known per operator: torch on a CPU.

    Raises:
        UsageError: no provider has that name.
    """
    if name not in get_args(ProviderName):
        raise UsageError(f"no operator provider {name!r}; there are {', '.join(get_args(ProviderName))}")
    if name == "torch" or (name == "auto" and device.type == "cpu"):
        return Operators()
    raise UsageError(f"operator provider {name!r} is not there yet")
