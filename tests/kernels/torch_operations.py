"""What the provider `triton` leaves to torch: memory and shapes; no cuBLAS, no cuDNN, no arithmetic."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

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
