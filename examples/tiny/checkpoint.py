"""Writes and reads the tiny model in DeepSeek's published checkpoint layout: native names, one shard per layer.

Stored: routed experts FP4 (I8 pairs, E8M0 per 32), attention and shared-expert linears FP8 (E4M3, E8M0 per 128 x 128),
embedding, head, norms, compressors, gates and index weights BF16, the rest F32, token-to-expert tables I64.
"""

import json
from pathlib import Path

import quantization
import torch
from model import Config, Linear, Numerics, TinyV4
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

F32_PARTS = ("hc_", "ape", "attn_sink", "gate.bias")


def stored_formats(model: nn.Module) -> dict[str, str]:
    """Name in the state dict -> "fp4", "fp8", "bf16", "f32" or "i64"."""
    fp8 = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear) and module.fp8}
    formats = {}
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0].endswith("ffn.experts"):
            formats[name] = "fp4"
        elif name in fp8:
            formats[name] = "fp8"
        elif value.dtype == torch.int64:
            formats[name] = "i64"
        else:
            formats[name] = "f32" if any(part in name for part in F32_PARTS) else "bf16"
    return formats


def native_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, by its name, as stored."""
    tensors = {}
    state = model.state_dict()
    for name, stored in stored_formats(model).items():
        value = state[name].detach().cpu()
        prefix, _, leaf = name.rpartition(".")
        if stored == "fp4":
            for expert, weight in enumerate(value):
                stem = f"{prefix}.{expert}.{leaf}"
                tensors[f"{stem}.weight"], tensors[f"{stem}.scale"] = quantization.encode_fp4(weight)
        elif stored == "fp8":
            tensors[name], tensors[f"{prefix}.scale"] = quantization.encode_fp8(value)
        else:
            tensors[name] = value.to(torch.bfloat16) if stored == "bf16" else value.contiguous()
    return tensors


def shard_of(name: str, layers: int) -> int:
    """The 1-based shard: embedding, one per layer, head with norm and hc_head, MTP."""
    parts = name.split(".")
    if parts[0] == "embed":
        return 1
    if parts[0] == "layers":
        return 2 + int(parts[1])
    return layers + (3 if parts[0] == "mtp" else 2)


def save(model: TinyV4, folder: Path) -> None:
    """Write the shards and model.safetensors.index.json."""
    layers = model.config.num_hidden_layers
    tensors = native_tensors(model)
    weight_map = {}
    for number in sorted({shard_of(name, layers) for name in tensors}):
        part = {name: tensor for name, tensor in tensors.items() if shard_of(name, layers) == number}
        file = f"model-{number:05d}-of-{layers + 3:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map, sum(tensor.nbytes for tensor in tensors.values()))


def write_index(folder: Path, weight_map: dict[str, str], total: int) -> None:
    """Write model.safetensors.index.json: the file of every tensor, and the bytes of all."""
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All stored tensors of a checkpoint folder by name."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(folder / file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (no mapping)
    if tensors.keys() != index["weight_map"].keys():
        raise ValueError(f"{folder}: index and shards disagree: {sorted(tensors.keys() ^ index['weight_map'].keys())}")
    return tensors


def dequantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors -> float32 weights without scales; integer tables stay."""
    weights = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name.removesuffix("weight") + "scale")
        if name.endswith(".scale"):
            continue
        if tensor.dtype == torch.int8:
            weights[name] = quantization.decode_fp4(tensor, scale)
        elif tensor.dtype == torch.float8_e4m3fn:
            weights[name] = quantization.decode_fp8(tensor, scale)
        else:
            weights[name] = tensor if tensor.dtype == torch.int64 else tensor.float()
    return weights


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a model the stored tensors; missing and left-over names are refused by torch. It learns no more."""
    weights = dequantize(tensors)
    for name, stacked in model.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if stem.endswith("ffn.experts"):
            names = [f"{stem}.{expert}.{leaf}.weight" for expert in range(len(stacked))]
            weights[name] = torch.stack([weights.pop(name) for name in names])
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)


def model_of(tensors: dict[str, Tensor], config: Config, numerics: Numerics) -> TinyV4:
    """A model with the stored tensors."""
    model = TinyV4(config, numerics)
    fill(model, tensors)
    return model


def load(folder: Path, numerics: Numerics) -> TinyV4:
    """The model of a checkpoint folder."""
    return model_of(read_tensors(folder), Config.read(folder / "config.json"), numerics)
