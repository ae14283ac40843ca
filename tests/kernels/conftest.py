"""What the kernel tests share. Where kernels run is decided in tests/conftest.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _language_patched_once() -> Iterator[None]:
    """Triton's interpreter looks at all of its language whenever a kernel calls a function: more than half of the time.

    What it would change has been changed already when the kernel began, but for a module that the kernel itself does
    not use (`tl.max` and its like use `tl.core`).
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton.language import core
    from triton.runtime import interpreter

    original = interpreter.InterpretedFunction.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        names = function.fn.__globals__
        if any(core.is_builtin(names[name].arange) for name in ("tl", "core") if name in names):
            return original(function, *args, **kwargs)
        return function.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    torch.manual_seed(20260424)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of a kernel test. A process either interprets kernels or compiles them, so one is skipped."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (request.param == "cpu") != interpreted:
        pytest.skip(
            "kernels are interpreted in this process" if interpreted else "kernels are compiled in this process"
        )
    return torch.device(request.param)


@pytest.fixture
def gpu() -> torch.device:
    """The GPU, for tests marked `gpu`."""
    return torch.device("cuda")
