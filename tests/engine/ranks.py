"""Running several ranks, and releases re-cut for them by rules written out here once more.

The rules are the facts' table 5.1 and section 5.4, as slices; nothing is taken from the package or the converter.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import recording_groups
import torch
import torch.multiprocessing as mp
from engine_checkpoint import BLOCK, Checkpoint, Form
from safetensors.torch import save_file
from torch import Tensor

OMode = Literal["shared", "split"]
DIM_0 = ("wq_b", "attn_sink", "weights_proj", "markov_w1", "markov_w2")


def own_part(name: str, x: Tensor, config: dict[str, Any], ranks: int, rank: int, o_mode: OMode) -> Tensor | None:
    """What `rank` holds of a tensor (weight or scale alike), or None."""
    groups = config["o_groups"]
    sharing = max(1, ranks // groups)
    pieces, piece, inner = ranks // sharing, rank // sharing, rank % sharing
    expert = re.search(r"\.ffn\.experts\.(\d+)\.", name)
    if expert:
        per_rank = config["n_routed_experts"] // ranks
        return x if int(expert[1]) // per_rank == rank else None
    last = name.rsplit(".", 2)[-2] if name.endswith((".weight", ".scale")) else name.rsplit(".", 1)[-1]
    if name in ("embed.weight", "head.weight") or last in DIM_0:
        return x.chunk(ranks, 0)[rank]
    if last == "wo_a":
        rows = x.chunk(pieces, 0)[piece]
        return rows.chunk(sharing, 1)[inner] if o_mode == "split" else rows
    if last == "wo_b":
        return x.chunk(ranks, 1)[rank] if o_mode == "split" else x.chunk(pieces, 1)[piece]
    return x


def _movable(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.float8_e8m0fnu else x


def write_mp(
    checkpoint: Checkpoint, folder: Path, form: Form, ranks: int, o_mode: OMode = "shared", parts: int = 1
) -> Path:
    """An mp release as DeepSeek's converter writes it: wo_a in BF16, FP4 experts as F4."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint.config_json(form)))
    stored = checkpoint.stored(form)
    for name in [name for name in stored if name.endswith(".wo_a.weight")]:
        stored[name] = checkpoint.values[name]
        stored.pop(name.removesuffix("weight") + "scale", None)
    for rank in range(ranks):
        own: dict[str, Tensor] = {}
        for name, whole in stored.items():
            part = own_part(name, _movable(whole), checkpoint.config, ranks, rank, o_mode)
            if part is not None:
                own[name] = part.contiguous().clone().view(whole.dtype)
                if whole.dtype == torch.int8:
                    own[name] = own[name].view(torch.float4_e2m1fn_x2)
        names = sorted(own)
        for n in range(parts):
            suffix = f"-part{n}" if parts > 1 else ""
            save_file(
                {name: own[name] for name in names[n::parts]}, folder / f"model{rank}-mp{ranks}{suffix}.safetensors"
            )
    return folder


# What a server of processes imports once for all ranks of a test run: starting a rank alone costs 3 to 5 s of a core.
IMPORTED = ["pytest", "torch", "flagrelease.engine.batch.scheduler", "flagrelease.engine.decode.stepper"]


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> Any:
    """What `work(*arguments)` returns on rank 0 of a job of that many processes, with nccl of one device each.

    Any other name than gloo and nccl is one of `recording_groups`.
    """
    multiprocessing.set_forkserver_preload(IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"  # a file, for a pipe would fill up before the processes are joined
        given = (ranks, port, answer, backend, work, arguments)
        mp.start_processes(_rank, given, nprocs=ranks, join=True, start_method="forkserver")
        return pickle.loads(answer.read_bytes())


def _rank(
    rank: int, ranks: int, port: int, answer: Path, backend: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        os.environ["LOCAL_RANK"] = str(rank)  # as torchrun says it
        torch.cuda.set_device(rank)
    elif backend != "gloo":
        recording_groups.register(backend)
    torch.distributed.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    result = work(*arguments)
    if rank == 0:
        answer.write_bytes(pickle.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


assert BLOCK == 128, "own_part cuts scales like weights: parts are whole blocks"
