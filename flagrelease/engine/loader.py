"""`load`: a release folder to a model that runs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from flagrelease.device import open_device
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.numerics import NumericsName, choose_numerics
from flagrelease.engine.parallel import alone, join_groups, start_job
from flagrelease.engine.release import Release
from flagrelease.engine.v4.model import DEFAULT_CHUNK, Model
from flagrelease.engine.weights import Weights
from flagrelease.ranks.job import local_rank
from flagrelease.shard.reader import TensorReader


def load(
    path: str | Path,
    numerics: NumericsName = "native",
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    *,
    operators: str = "auto",
    chunk: int = DEFAULT_CHUNK,
    mtp: bool = False,
) -> Model:
    """Load a release: a source checkpoint or bf16-hf, fp8-hf in HF layout, or an mpN release.

    Under torchrun (or in any torch.distributed job) every rank calls this and holds its part; otherwise mp is 1.

    Args:
        path: the release's folder.
        numerics: what is rounded where, see `numerics.py`.
        dtype: of streams and caches; torch.float32 with numerics "bf16" makes a reference.
        device: auto, cpu, or one that the chip table knows; under torchrun this process's device of that kind.
        operators: the provider of the operators: torch, triton, auto or flag_gems.
        chunk: tokens appended to a sequence in one step; more take more memory and fewer steps.
        mtp: load the draft stage too. Its tensors are checked in any case.

    Raises:
        CheckpointError: the release is not exactly what its config says.
        UsageError: the choices contradict each other or the release.
        ResourceError: the device is not there.
    """
    opened = open_device(device, local_rank())
    start_job(opened)
    place = torch.device(opened.torch_device)
    mp, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    provider = load_provider(operators, place)
    with TensorReader() as reader:
        release = Release(Path(path), rank, mp, place, reader)
        groups = join_groups(release.config, release.o_mode or "split") if mp > 1 else alone()
        parts = release.config.o_groups if groups.o_mode == "shared" else mp
        policy = choose_numerics(numerics, dtype, release.config, parts)
        model = Model.build(Weights(release, policy), release.config, policy, provider, groups, opened, mtp=mtp)
    model.chunk = chunk
    return model
