"""The provider `triton` leaves nothing to torch but memory and shapes: no cuBLAS, no cuDNN, no arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import CASES, Case
from torch.utils._python_dispatch import TorchDispatchMode

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.triton_operators import TritonOperators

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

MEMORY_AND_SHAPE = {
    "empty", "empty_like", "empty_strided", "new_empty",
    "_to_copy", "clone", "copy_", "detach", "lift_fresh", "set_",
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "expand", "permute", "select", "slice", "t", "transpose",
    "unsqueeze", "view",
}  # fmt: skip


class Recorder(TorchDispatchMode):
    """The names of the aten operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "case", [c for c in CASES if "float32" not in c.label], ids=lambda c: f"{c.operator}: {c.label}"
)
def test_only_memory_and_shape_operations_are_left_to_torch(case: Case, device: torch.device) -> None:
    arguments = case.arguments(device)
    with Recorder() as recorder:
        getattr(TritonOperators, case.operator)(*arguments)
    assert recorder.seen <= MEMORY_AND_SHAPE


def test_arithmetic_is_seen() -> None:
    with Recorder() as recorder:
        reference.rms_norm(torch.randn(2, 8), None, 1e-6)
    assert {"mean", "rsqrt", "mul"} <= recorder.seen
