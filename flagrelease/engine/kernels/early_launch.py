"""Kernels that are set up on the device while the one before them still runs (CUDA's programmatic dependent launch).

A step of decoding is some 1,200 short kernels, each of which depends on the last: what a kernel does before its first
load of another's result costs nothing this way, and weights can be on their way to the cache meanwhile. Every kernel
that is launched so calls `wait_for_results` before it reads or writes anything that another kernel does.

What is waited for is the one kernel before in the stream; all earlier ones are done then, because that one waited too.
A stream that has come to wait for another one depends on a second kernel: its next one is launched as usual, when all
that it depends on is done (`start_after_all`). (CUDA then shows full edges in a recorded graph, which a test reads.)
"""
# ruff: noqa: N803  (constants)

from collections.abc import Callable
from functools import partial
from typing import Any

import triton
import triton.language as tl

from flagrelease.accelerator import current_cuda_stream
from flagrelease.engine.kernels.emulation import as_kernels_take_them, kernels_emulate
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.targets import TARGET

EARLY = tl.constexpr(TARGET.starts_early)

# Named here, where they may be missing: Triton follows every name in a kernel, also in branches that it leaves out, and
# triton-ascend 3.2 has no `tl.extra.cuda`, so that it would refuse all kernels.
_cuda: Any = getattr(tl.extra, "cuda", None)
_launch_dependents: Any = getattr(_cuda, "gdc_launch_dependents", None)
_wait: Any = getattr(_cuda, "gdc_wait", None)


_late: set[int] = set()  # streams whose next kernel here is launched as usual


def start_after_all() -> None:
    """Launch the current stream's next kernel when all that it depends on is done."""
    if EARLY.value:
        _late.add(current_cuda_stream())


def _may_start_early() -> bool:
    if not _late:
        return True
    stream = current_cuda_stream()
    early = stream not in _late
    _late.discard(stream)
    return early


class _EarlyKernel:
    """A jitted function whose launches ask for an early start, and give it E4M3 as bytes where FP8 is emulated."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._kernel = triton.jit(function)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        launch = self._kernel[grid]
        if EARLY.value:
            launch = partial(launch, launch_pdl=_may_start_early())
        return as_kernels_take_them(launch) if kernels_emulate() else launch


def early_kernel(function: Callable[..., Any]) -> _EarlyKernel:
    """`jit` for a kernel that calls `wait_for_results`."""
    return _EarlyKernel(function)


@jit
def wait_for_results(NEXT: tl.constexpr = True) -> None:
    """Let the next kernel be set up (`NEXT`), then wait until the one before has written all its results.

    A long kernel with about as many programs as the chip takes at once does not let the next one: that one's programs
    take the room that they find, unevenly, and keep it.
    """
    if EARLY:
        if NEXT:
            _launch_dependents()
        _wait()


@jit
def prefetch_rows(rows: tl.tensor, ROWS: tl.constexpr, SIZE: tl.constexpr) -> None:
    """Start SIZE bytes, 1024 at most, at each of the byte pointers `rows` [ROWS] on their way to the cache."""
    if EARLY:
        LINES: tl.constexpr = 8 if SIZE > 512 else (4 if SIZE > 256 else (2 if SIZE > 128 else 1))
        lines = rows[:, None] + tl.minimum(tl.arange(0, LINES) * 128, SIZE - 1)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [lines.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
