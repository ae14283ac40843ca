"""What the kernel tests share. Where kernels run is decided in tests/conftest.py."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


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
