"""Releases of a small native checkpoint in other forms, written without the converter, for consumers to load.

Weights are decoded by their definition and stored anew in the form asked for, the scales by the simplest rule: for a
block or row with the largest magnitude m, 2^ceil(log2(m / 448)) in FP8 and m / 127 in INT8.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Weight = Callable[[str, torch.Tensor], Tensors]
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
EXPERT = re.compile(r"\.ffn\.experts\.\d+\.w[123]$")
WO_A = re.compile(r"\.attn\.wo_a$")


def read(folder: Path) -> Tensors:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def float_of(scale: torch.Tensor) -> torch.Tensor:
    return torch.exp2(scale.view(torch.uint8).to(torch.float32) - 127)


def decoded(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if weight.dtype == torch.int8:
        bits = weight.view(torch.uint8).to(torch.int64)
        return FP4[torch.stack([bits & 15, bits >> 4], dim=-1).flatten(-2)] * float_of(scale).repeat_interleave(32, 1)
    rows, columns = weight.shape
    blocks = float_of(scale).repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return weight.to(torch.float32) * blocks


def power_of_two(largest: torch.Tensor) -> torch.Tensor:
    return torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest / 448))), 1.0)


def plain(name: str, weight: torch.Tensor) -> Tensors:
    return {f"{name}.weight": weight.to(torch.bfloat16)}


def block_fp8(scale_dtype: torch.dtype) -> Weight:
    def stored(name: str, weight: torch.Tensor) -> Tensors:
        rows, columns = weight.shape
        tall, wide = -(-rows // 128), -(-columns // 128)
        padded = torch.zeros(tall * 128, wide * 128)
        padded[:rows, :columns] = weight.abs()
        scale = power_of_two(padded.reshape(tall, 128, wide, 128).amax((1, 3)))
        spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        return {f"{name}.weight": (weight / spread).to(torch.float8_e4m3fn), f"{name}.scale": scale.to(scale_dtype)}

    return stored


def channel_fp8(name: str, weight: torch.Tensor) -> Tensors:
    scale = power_of_two(weight.abs().amax(1, keepdim=True))
    return {f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}


def channel_int8(name: str, weight: torch.Tensor) -> Tensors:
    largest = weight.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return {f"{name}.weight": torch.round(weight / scale).to(torch.int8), f"{name}.weight_scale": scale}


def compressed(kind: str, targets: list[str], ignore: list[str]) -> dict[str, Any]:
    numbers = {"num_bits": 8, "type": kind, "symmetric": True}
    form = "int-quantized" if kind == "int" else "float-quantized"
    group = {
        "targets": targets,
        "format": form,
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ignore,
    }  # fmt: skip


def write(
    source: Path,
    out: Path,
    experts: Weight | None,
    linears: Weight | None,
    config: Mapping[str, Any],
    wo_a: Weight | None = None,
    change: Callable[[Tensors], Tensors] | None = None,
) -> Path:
    """Write a release; a form that is None leaves those weights as they are, a config key that is None goes away."""
    tensors = read(source)
    written: Tensors = {}
    for name, value in tensors.items():
        scale = tensors.get(f"{name.removesuffix('.weight')}.scale")
        if name.endswith(".scale"):
            continue
        module = name.removesuffix(".weight")
        form = experts if EXPERT.search(module) else wo_a if wo_a and WO_A.search(module) else linears
        if scale is None or form is None:
            written |= {name: value} if scale is None else {name: value, f"{module}.scale": scale}
        else:
            written |= form(module, decoded(value, scale))
    out.mkdir(parents=True)
    whole = change(written) if change else written
    save_file({name: value.contiguous() for name, value in whole.items()}, out / "model.safetensors")
    document = {**json.loads((source / "config.json").read_text(encoding="utf-8")), **config}
    kept = {key: value for key, value in document.items() if value is not None}
    (out / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    for file in source.glob("*.json"):
        if file.name not in {"config.json", "model.safetensors.index.json"}:
            shutil.copy(file, out)
    return out
