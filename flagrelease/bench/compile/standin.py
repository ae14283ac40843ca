"""A driver for Triton that stands in for a device, and compiles what is launched instead of running it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from flagrelease.bench.compile.target import CompileTarget

Launch = Callable[..., Any]


def stand_in(target: CompileTarget, around: Callable[[str, Launch, dict[str, Any]], Any]) -> None:
    """Let this process's kernels be compiled for `target`, whatever machine it runs on.

    To be called before the kernels' modules are imported: they ask what the target is then. Tensors stay on the CPU;
    of a launch only their types and alignment matter.

    Args:
        target: what Triton's driver says it has.
        around: called for each launch with the kernel's name, a function that compiles it and returns what Triton
            compiled, and the launch's constants and options.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    current = GPUTarget(target.backend, target.arch, target.warp)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: current,
            get_current_device=lambda: 0,
            get_current_stream=lambda device=None: 0,
            get_active_torch_device=lambda: torch.device("cpu"),
            utils=None,
        )
    )
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return around(kernel.__name__, lambda: run(kernel, *args, grid=grid, warmup=True, **options), options)

    JITFunction.run = compile_only
