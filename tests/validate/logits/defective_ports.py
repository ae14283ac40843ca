"""A small source, its BF16 release, and releases and engines with one planted defect each.

A defect of the converter is in the weights, and the manifest agrees with the wrong bytes: files and digests hold, only
the source can tell. A defect of the engine is in an operator of the port; its release is sound.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from engine_checkpoint import Checkpoint, random_tokens, small_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from flagrelease import cli
from flagrelease.engine.kernels.operators import OPERATORS, Operators
from flagrelease.engine.v4.model import Model
from flagrelease.records.rules import LogitsLimits, LogitsRules, ReplayRules

Tensors = dict[str, Tensor]
VOCABULARY = 320
DOCUMENTS = 10

# Few tokens: shares get room for what so few cannot show. The KL limits are calibrated on this model's sound port: its
# distance from the oracle is 8e-5, from the native run 0.03.
RULES = LogitsRules(
    replay=ReplayRules(
        documents=DOCUMENTS, tokens=72, long_tokens=160, decode_tokens=10, chunk=64, floor_chunk=40, floor_rows=2,
        layer_positions=4,
    ),
    oracle=LogitsLimits(
        mean_kl=3e-4, floors=3, tail_kl=0.1, tail_share=0.05, top1=0.9, top1_clear=0.9, margin=0.5, perplexity=0.02
    ),
    native=LogitsLimits(mean_kl=0.1, top1_clear=0.8, margin=0.5, perplexity=0.1),
    min_documents=DOCUMENTS,
    min_tokens=700,
    min_decode_tokens=100,
)  # fmt: skip


class CalmCheckpoint(Checkpoint):
    """Layers that add little to the streams, and routers with strong biases: random weights without either turn any
    rounding into another model."""

    def _fp8(self, at: str, rows: int, columns: int, gain: float = 1) -> None:
        super()._fp8(at, rows, columns, gain / 8 if at.endswith(("wo_b", "w2")) else gain)

    def _fp4(self, at: str, rows: int, columns: int, gain: float = 1) -> None:
        super()._fp4(at, rows, columns, gain / 8 if at.endswith("w2") else gain)

    def _f32(self, name: str, shape: tuple[int, ...], std: float) -> None:
        super()._f32(name, shape, {"bias": 10 * std, "weight": 2 / 3 * std}.get(name.split(".")[-1], std))


def write_documents(path: Path) -> Path:
    """Token ids by chance, but one in three repeats an earlier one; one document is long."""
    lines = []
    for number in range(DOCUMENTS):
        length = 160 if number == 3 else 72
        tokens, generator = random_tokens(length, seed=number), np.random.default_rng(number)
        for at in range(8, length):
            if generator.random() < 1 / 3:
                tokens[at] = tokens[at - int(generator.integers(1, 8))]
        kind = "long" if number == 3 else "chance"
        lines.append(json.dumps({"name": f"document {number}", "kind": kind, "tokens": tokens}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_source(folder: Path) -> Path:
    return CalmCheckpoint(small_config(), seed=5).write_hf(folder, "native")


def convert_source(source: Path, out: Path) -> Path:
    assert cli.main(["convert", str(source), "--target", "bf16:hf", "--out", str(out)]) == 0
    return out / "bf16-hf"


# Defects of the converter: what they do to the release's tensors or to its config.

LAYER = 2
WQ_B, WO_B = f"layers.{LAYER}.attn.wq_b.weight", f"layers.{LAYER}.attn.wo_b.weight"
EXPERT = f"layers.{LAYER}.ffn.experts"
BIAS = f"layers.{LAYER}.ffn.gate.bias"
SHARED = f"layers.{LAYER}.ffn.shared_experts"


def double_block(tensors: Tensors) -> None:
    tensors[WQ_B][128:256] *= 2


def roll_rows(tensors: Tensors) -> None:
    tensors[WO_B] = tensors[WO_B].roll(1, 0)


def swap_gate_and_up(tensors: Tensors) -> None:
    for at in [SHARED, *(f"{EXPERT}.{n}" for n in range(8))]:
        w1, w3 = f"{at}.w1.weight", f"{at}.w3.weight"
        tensors[w1], tensors[w3] = tensors[w3], tensors[w1]


def swap_experts(tensors: Tensors) -> None:
    often, seldom = (int(pick(tensors[BIAS])) for pick in (torch.argmax, torch.argmin))
    for w in ("w1", "w2", "w3"):
        one, other = f"{EXPERT}.{often}.{w}.weight", f"{EXPERT}.{seldom}.{w}.weight"
        tensors[one], tensors[other] = tensors[other], tensors[one]


def spoil_tensors(release: Path, plant: Callable[[Tensors], None]) -> None:
    """Change tensors, and make index, files and manifest agree with the change."""
    files = {path: load_file(path) for path in sorted(release.glob("*.safetensors"))}
    where = {name: path for path, tensors in files.items() for name in tensors}
    every = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    before = dict(every)
    plant(every := {name: tensor.clone() for name, tensor in every.items()})
    changed = {name for name in every if not torch.equal(every[name], before[name])}
    assert changed
    for path in {where[name] for name in changed}:
        save_file({name: every[name].contiguous() for name in files[path]}, path, {"format": "pt"})
    manifest = json.loads((release / "manifest.json").read_text())
    for name in changed:
        data = every[name].contiguous().view(torch.uint8).numpy().tobytes()
        manifest["tensors"][name]["blake3"] = blake3(data).hexdigest()
    record(release, manifest)


def spoil_config(release: Path) -> None:
    """A normalisation constant a thousand times as large, in both configs."""
    for name, key in (("config.json", "rms_norm_eps"), ("inference/config.json", "norm_eps")):
        path = release / name
        if path.is_file():
            document = json.loads(path.read_text())
            if key in document or name == "config.json":
                path.write_text(json.dumps(document | {key: 1e-3}))
    record(release, json.loads((release / "manifest.json").read_text()))


def flip_bit(release: Path) -> None:
    """One sign in the last file, behind the manifest's back."""
    path = sorted(release.glob("*.safetensors"))[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def record(release: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose files have the sizes and digests that they have."""
    for file in manifest["files"]:
        data = (release / file["path"]).read_bytes()
        file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (release / "manifest.json").write_text(json.dumps(manifest))


# Defects of the port's engine: an operator that is not the defined one.


class PortOperators(Operators):
    """Another provider: the same operators, sums in another order."""

    name = "port"

    def __init__(self) -> None:
        for name in OPERATORS:
            setattr(self, name, getattr(Operators, name))
        self.linear = _linear_in_halves


def _linear_in_halves(x: Tensor, w: Tensor, out_dtype: torch.dtype, *rest: Any) -> Tensor:
    half = x.shape[-1] // 2
    first, second = (a.float() @ b.float().mT for a, b in ((x[..., :half], w[:, :half]), (x[..., half:], w[:, half:])))
    return (first + second).to(out_dtype)


def unclamped_shared_expert(ops: Operators) -> None:
    def swiglu(gate: Tensor, up: Tensor, limit: float, *rest: Any) -> Tensor:
        return Operators.swiglu(gate, up, torch.inf, *rest)

    ops.swiglu = swiglu


def large_epsilon(ops: Operators) -> None:
    def rms_norm(x: Tensor, weight: Tensor | None, eps: float, *rest: Any, **more: Any) -> Tensor:
        return Operators.rms_norm(x, weight, 1000 * eps, *rest, **more)

    ops.rms_norm = rms_norm


def short_window_in_decode(ops: Operators) -> None:
    def sparse_attention(q: Tensor, kv: Tensor, sink: Tensor, idx: Tensor, scale: float, *rest: Any) -> Tensor:
        if q.shape[1] == 1:  # the newest key is the last one listed
            idx = torch.cat((idx[..., :-8], idx[..., -1:]), -1)
        return Operators.sparse_attention(q, kv, sink, idx, scale, *rest)

    ops.sparse_attention = sparse_attention


def ported(model: Model, spoil: Callable[[Operators], None] | None) -> Model:
    """The model on the port's operators, spoiled or not."""
    ops = PortOperators()
    if spoil is not None:
        spoil(ops)
    return replace(model, ops=ops)


@dataclass(frozen=True)
class Defect:
    """`release` changes a copy of the release, `engine` the port's operators."""

    name: str
    release: Callable[[Path], None] | None = None
    engine: Callable[[Operators], None] | None = None


DEFECTS = [
    Defect("one bit flipped in the finished release", flip_bit),
    Defect("scale of one block doubled (wq_b, layer 2)", lambda path: spoil_tensors(path, double_block)),
    Defect("rows rolled by one (wo_b, layer 2)", lambda path: spoil_tensors(path, roll_rows)),
    Defect("gate and up swapped (layer 2)", lambda path: spoil_tensors(path, swap_gate_and_up)),
    Defect("two experts swapped (layer 2)", lambda path: spoil_tensors(path, swap_experts)),
    Defect("RMS epsilon times 1000 in config.json", spoil_config),
    Defect("RMS epsilon times 1000 in the engine", None, large_epsilon),
    Defect("shared expert not clamped by the engine", None, unclamped_shared_expert),
    Defect("seven keys of the window forgotten in decode", None, short_window_in_decode),
]
