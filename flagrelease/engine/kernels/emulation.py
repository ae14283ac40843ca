"""Whether FP8 is emulated: E4M3 rounded and read by integer arithmetic instead of the hardware's type.

The numbers are the same to the bit; only what multiplies them differs (BF16 or FP32 instead of an FP8 unit). So a chip
without FP8 runs native numerics, and on one with FP8 a difference can be blamed: what stays under emulation comes from
rounding, what goes away from the chip's FP8 unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flagrelease.chips.table import load_chips

_asked: ContextVar[bool] = ContextVar("fp8_is_emulated", default=False)


@contextmanager
def emulated_fp8() -> Iterator[None]:
    """FP8 is emulated inside, whatever the device can do."""
    before = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(before)


def kernels_emulate() -> bool:
    """Whether Triton kernels do: if that is asked for, or if Triton has no E4M3 for the device."""
    return _asked.get() or not _triton_has_e4m3()


def torch_emulates(kind: str) -> bool:
    """Whether torch operators on devices of this kind do: if that is asked for, or if no chip of the kind has FP8.

    torch converts to E4M3 in software on a CPU and wherever it is built for CUDA; what a vendor's own module does
    on chips without FP8 cannot be asked, so the chip table decides.
    """
    return _asked.get() or _no_chip_has_fp8(kind)


def as_kernels_take_them(launch: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel's launch, which is given E4M3 tensors as bytes."""

    def launch_bytes(*args: Any, **constants: Any) -> Any:
        return launch(*(_bytes(arg) if isinstance(arg, Tensor) else arg for arg in args), **constants)

    return launch_bytes


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


@cache
def _no_chip_has_fp8(kind: str) -> bool:
    claims = [chip.fp8 for chip in load_chips().values() if chip.torch_device == kind]
    return bool(claims) and all(claim is False for claim in claims)


@cache
def _triton_has_e4m3() -> bool:
    from flagrelease.engine.kernels.targets import TARGET  # imports Triton, which torch operators need not have

    return TARGET.has_e4m3
