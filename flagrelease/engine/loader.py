"""`load`: a release folder to a model that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from flagrelease import __version__
from flagrelease.device import open_device
from flagrelease.engine.agreement import require_same_options, require_same_release
from flagrelease.engine.control import open_control
from flagrelease.engine.families import build_model
from flagrelease.engine.host_rows import Table
from flagrelease.engine.intake import Intake
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.loaded import DEFAULT_CHUNK, AnyModel
from flagrelease.engine.numerics import NumericsName, choose_numerics, own_numerics
from flagrelease.engine.parallel import alone, join_groups, start_job
from flagrelease.engine.release import Release
from flagrelease.engine.weights import Weights
from flagrelease.errors import UsageError
from flagrelease.ranks.job import local_rank


def load(
    path: str | Path,
    numerics: NumericsName | None = None,
    dtype: torch.dtype | str = torch.bfloat16,
    device: str = "cpu",
    *,
    operators: str = "auto",
    chunk: int = DEFAULT_CHUNK,
    mtp: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AnyModel:
    """Load a release: a source checkpoint, a release of any format in HF layout, or an mpN release.

    Under torchrun (or in any torch.distributed job) every rank calls this and holds its part; otherwise mp is 1.

    Args:
        path: the release's folder.
        numerics: what is rounded where, see `numerics.py`. None: the release's own, see `own_numerics`.
        dtype: of streams and caches, torch's or its name; "float32" makes a reference (not of native and fp8).
        device: auto, cpu, or one that the chip table knows; under torchrun this process's device of that kind.
        operators: the provider of the operators: torch, triton, auto, flag_gems or emulated.
        chunk: tokens appended to a sequence in one step; more take more memory and fewer steps.
        mtp: load the draft stages too. Their tensors are checked in any case.
        progress: is told how many of this rank's weights are loaded, and how many there are.

    Raises:
        CheckpointError: the release is not exactly what its config says, or not the same for all ranks.
        UsageError: the choices contradict each other or the release, or are not the same for all ranks.
        ResourceError: the device is not there.
        LostRankError: another rank has ended.
    """
    path, dtype = Path(path), _dtype(dtype)
    opened = open_device(device, local_rank())
    start_job(opened)
    control = open_control()
    require_same_options(
        control,
        {
            "--numerics": numerics, "--dtype": dtype, "--device": opened.type, "--operators": operators,
            "chunk": chunk, "the draft stage": mtp, "flagrelease": __version__, "torch": torch.__version__,
        },
    )  # fmt: skip
    require_same_release(control, path)
    place = torch.device(opened.torch_device)
    mp, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    provider = load_provider(operators, place)
    with Intake(opened) as intake:
        release = Release(path, rank, mp, intake)
        groups = join_groups(release.config, release.o_mode or "split", control) if mp > 1 else alone()
        parts = release.config.o_groups if groups.o_mode == "shared" else mp
        name = numerics or own_numerics(path, release.config, release.formats)
        policy = choose_numerics(name, dtype, release.config, parts)
        policy.require(release.formats, path)
        source = release if progress is None else _Watched(release, progress)
        weights = Weights(source, policy)
        model = build_model(path, weights, release.config, policy, provider, groups, opened, mtp=mtp)
    model.chunk = chunk
    return model


class _Watched:
    """A release whose reading is watched. Implements `weights.TensorSource`."""

    def __init__(self, release: Release, progress: Callable[[int, int], None]) -> None:
        """Nothing is read yet."""
        self._release, self._progress, self._read = release, progress, set[str]()

    def read(self, name: str) -> Tensor:
        """The release's tensor."""
        tensor = self._release.read(name)
        self._note(name)
        return tensor

    def table(self, name: str) -> Table:
        """The release's table."""
        table = self._release.table(name)
        self._note(name)
        return table

    def read_each(self, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The release's tensors and scales."""
        for name, both in zip(names, self._release.read_each(names), strict=True):
            self._note(name)
            yield both

    def _note(self, name: str) -> None:
        self._read.add(name)
        self._progress(len(self._read), self._release.weights)

    def read_scale(self, name: str) -> Tensor | None:
        """The release's scale."""
        return self._release.read_scale(name)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype, by itself or by its name with or without "torch." before it."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise UsageError(f"dtype {dtype!r}: the engine computes in bfloat16 or float32")
    return found
