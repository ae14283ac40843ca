"""Backends of torch.distributed with a vendor's name: they write down what they are given, and gloo does the work."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

DOCUMENTED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "devices/collective_dtypes.json").read_text(encoding="utf-8")
)
SUMS = ("all_reduce", "reduce_scatter")
# What this process gave to any of them: collective, dtype, the ranks of the group.
GIVEN: list[tuple[str, str, tuple[int, ...]]] = []


def takes(backend: str, collective: str, dtype: str) -> bool:
    """Whether the backend's sources say that it takes this dtype as what it is, for a sum or to be moved."""
    known = DOCUMENTED[backend]["dtypes"]
    as_bytes = "uint8" in known.get(dtype, "").lower() and dtype != "uint8"
    summed = DOCUMENTED[backend].get("added up", known) if collective in SUMS else known
    return dtype in known and dtype in summed and not as_bytes


class RecordingGroup(dist.ProcessGroup):
    """As gloo, for the collectives that the engine uses."""

    def __init__(self, name: str, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._called = name
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:  # noqa: N802  (torch's)
        return self._called

    def _given(self, collective: str, x: torch.Tensor) -> None:
        dtype = str(x.dtype).removeprefix("torch.")
        if not takes(self._called, collective, dtype):
            raise RuntimeError(f"{self._called} documents no {collective} of {dtype}")
        GIVEN.append((collective, dtype, tuple(dist.get_process_group_ranks(self))))

    def allreduce(self, tensors: list[torch.Tensor], opts: Any) -> Any:
        self._given("all_reduce", tensors[0])
        return self._gloo.allreduce(tensors, opts)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any) -> Any:
        self._given("all_gather", inputs[0])
        return self._gloo.allgather(outputs, inputs, opts)

    def all_gather_single(self, output: torch.Tensor, x: torch.Tensor, opts: Any) -> Any:
        self._given("all_gather_single", x)
        return self._gloo._allgather_base(output, x, opts)

    def reduce_scatter_single(self, output: torch.Tensor, x: torch.Tensor, opts: Any) -> Any:
        self._given("reduce_scatter", x)
        return self._gloo._reduce_scatter_base(output, x, opts)

    _allgather_base, _reduce_scatter_base = all_gather_single, reduce_scatter_single  # before torch 2.13

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> Any:
        self._given("broadcast", tensors[0])
        return self._gloo.broadcast(tensors, opts)

    def barrier(self, opts: Any) -> Any:
        return self._gloo.barrier(opts)


def register(name: str) -> None:
    """Make `init_process_group(name)` work in this process, on CPU tensors."""
    if name.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(name, lambda *given: RecordingGroup(name, *given), devices=["cpu"])
