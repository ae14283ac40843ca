"""Providers of the operators, chosen by name: `torch`, `triton`, `auto`, `flag_gems`, `emulated`."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch

from flagrelease.engine.kernels.emulated_operators import emulating
from flagrelease.engine.kernels.emulation import kernels_emulate, torch_emulates
from flagrelease.engine.kernels.operators import Operators
from flagrelease.errors import ResourceError, UsageError

ProviderName = Literal["torch", "triton", "auto", "flag_gems", "emulated"]


def load_provider(name: str, device: torch.device) -> Operators:
    """The operators of the named provider for tensors on `device`.

    | name | what computes |
    |---|---|
    | torch | the definitions (`reference`), anywhere |
    | triton | a Triton kernel for every operator, on an accelerator (or any device under TRITON_INTERPRET=1) |
    | auto | the fastest known of each: torch on a CPU; on an accelerator Triton, and the vendor's dense products |
    | flag_gems | FlagGems' kernels where it has the operator, Triton otherwise, on an accelerator |
    | emulated | as auto, with FP8 by integer arithmetic: what a chip's FP8 unit adds to a difference is then gone |

    On a device without FP8 all of them emulate it; `Operators.name` says so.

    Raises:
        UsageError: no provider has that name.
        ResourceError: the provider's package or an accelerator is missing.
    """
    if name not in get_args(ProviderName):
        raise UsageError(f"no operator provider {name!r}; there are {', '.join(get_args(ProviderName))}")
    if name == "emulated":
        return emulating(_load("auto", device))
    ops = _load(name, device)
    emulates = torch_emulates(device.type) or (device.type != "cpu" and name != "torch" and kernels_emulate())
    return emulating(ops) if emulates else ops


def _load(name: str, device: torch.device) -> Operators:
    if name == "torch" or (name == "auto" and device.type == "cpu"):
        return Operators()
    if device.type == "cpu" and (name == "flag_gems" or os.environ.get("TRITON_INTERPRET") != "1"):
        raise ResourceError(f"operator provider {name!r} needs an accelerator; on a CPU there is 'torch'")
    return _import(name)


def _import(name: str) -> Operators:
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
