"""Providers of the operators, chosen by name: `torch`, `triton`, `auto`, `flag_gems`."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch

from flagrelease.engine.kernels.operators import Operators
from flagrelease.errors import ResourceError, UsageError

ProviderName = Literal["torch", "triton", "auto", "flag_gems"]


def load_provider(name: str, device: torch.device) -> Operators:
    """The operators of the named provider for tensors on `device`.

    | name | what computes |
    |---|---|
    | torch | the definitions (`reference`), anywhere |
    | triton | a Triton kernel for every operator, on an accelerator (or any device under TRITON_INTERPRET=1) |
    | auto | the fastest known of each: torch on a CPU; on an accelerator Triton, and the vendor's dense products |
    | flag_gems | FlagGems' kernels where it has the operator, Triton otherwise, on an accelerator |

    Raises:
        UsageError: no provider has that name.
        ResourceError: the provider's package or an accelerator is missing.
    """
    if name not in get_args(ProviderName):
        raise UsageError(f"no operator provider {name!r}; there are {', '.join(get_args(ProviderName))}")
    if name == "torch" or (name == "auto" and device.type == "cpu"):
        return Operators()
    if device.type == "cpu" and (name == "flag_gems" or os.environ.get("TRITON_INTERPRET") != "1"):
        raise ResourceError(f"operator provider {name!r} needs an accelerator; on a CPU there is 'torch'")
    return _load(name)


def _load(name: str) -> Operators:
    # Imported on demand: a CPU needs none of these, and flag_gems looks for a device when it is imported.
    try:
        if name == "triton":
            from flagrelease.engine.kernels.triton_operators import TritonOperators

            return TritonOperators()
        if name == "auto":
            from flagrelease.engine.kernels.auto_operators import AutoOperators

            return AutoOperators()
        from flagrelease.engine.kernels.flag_gems_operators import FlagGemsOperators

        return FlagGemsOperators()
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"operator provider {name!r} needs the Python package {error.name!r}"
            + ("; FlagGems: pip install --no-deps flag_gems==5.0.2 sqlalchemy" if name == "flag_gems" else "")
        ) from error
