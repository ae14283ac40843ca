"""Releases of the formats that serving stacks load, quantised here in numpy; nothing is taken from the converter.

A release keeps what it holds as values, too: code times scale in float64, rounded once to float32, for oracles.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch
from engine_checkpoint import Checkpoint
from safetensors.torch import save_file
from torch import Tensor

ServingForm = Literal["int8", "int8-experts", "fp8-channel", "w8a8-ascend", "mxfp8"]
FORMS: tuple[ServingForm, ...] = ("int8", "int8-experts", "fp8-channel", "w8a8-ascend", "mxfp8")
MODELSLIM = ("w8a8-ascend", "mxfp8")
Array = np.ndarray[Any, Any]
Coded = tuple[Tensor, Tensor, Array]  # codes, scales as they are stored, values in float64


def by_absmax(x: Array, largest: float) -> Array:
    return (np.abs(x).max(1, keepdims=True) / largest).astype(np.float32)


def by_power_of_two(x: Array, largest: float) -> Array:
    return np.exp2(np.ceil(np.log2(np.abs(x).max(1, keepdims=True) / largest))).astype(np.float32)


ScaleRule = Callable[[Array, float], Array]


def int8(x: Array, rule: ScaleRule) -> Coded:
    scale = rule(x, 127)
    codes = np.clip(np.rint(x / scale.astype(np.float64)), -127, 127)
    return torch.from_numpy(codes.astype(np.int8)), torch.from_numpy(scale), codes * scale


def fp8_channel(x: Array, rule: ScaleRule) -> Coded:
    scale = rule(x, 448)
    codes = np.clip(x / scale.astype(np.float64), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    raw = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
    return raw, torch.from_numpy(scale), codes.astype(np.float64) * scale


def mxfp8(x: Array, rule: ScaleRule) -> Coded:
    groups = x.reshape(len(x), -1, 32)
    exponent = np.floor(np.log2(np.abs(groups).max(2))) - 8
    codes = np.clip(groups / np.exp2(exponent)[..., None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    raw = torch.from_numpy(codes.reshape(x.shape).view(np.uint8)).view(torch.float8_e4m3fn)
    values = (codes.astype(np.float64) * np.exp2(exponent)[..., None]).reshape(x.shape)
    return raw, torch.from_numpy((exponent + 127).astype(np.uint8)), values


ENCODERS = {"int8": int8, "int8-experts": int8, "w8a8-ascend": int8, "fp8-channel": fp8_channel, "mxfp8": mxfp8}


def is_coded(form: ServingForm, name: str) -> bool:
    """Whether the release stores this weight, which DeepSeek stores in codes, in codes of its own."""
    if ".experts." in name:
        return True
    plain = {"int8-experts": ("",), "w8a8-ascend": (".wo_a.weight", ".wq_a.weight", ".wkv.weight")}
    return not name.endswith(plain.get(form, (".wo_a.weight",)))


class ServingRelease:
    """`stored`: every tensor by name, which a test may change before `write`. `values`: what the weights mean."""

    def __init__(self, checkpoint: Checkpoint, form: ServingForm, rule: ScaleRule = by_absmax) -> None:
        self.form, self.config = form, dict(checkpoint.config)
        self.values, self.stored = dict(checkpoint.values), dict(checkpoint.values)
        for name in checkpoint.codes:
            if not is_coded(form, name):
                continue
            codes, scale, values = ENCODERS[form](checkpoint.values[name].double().numpy(), rule)
            at = name.removesuffix(".weight")
            self.stored |= {name: codes, f"{at}.weight_scale": scale}
            if form == "w8a8-ascend":
                self.stored[f"{at}.weight_offset"] = torch.zeros_like(scale)
            self.values[name] = torch.from_numpy(values.astype(np.float32))
        if form in MODELSLIM:
            self.stored["mtp.0.emb.tok_emb.weight"] = self.stored["embed.weight"].clone()
            self.stored["mtp.0.head.weight"] = self.stored["head.weight"].clone()
        else:
            kind = "float-quantized" if form == "fp8-channel" else "int-quantized"
            self.config["quantization_config"] = {"quant_method": "compressed-tensors", "format": kind}

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        stem = "quant_model_weights" if self.form in MODELSLIM else "model"
        names, weight_map = sorted(self.stored), {}
        for n in range(2):
            file = f"{stem}-{n + 1:05}-of-00002.safetensors"
            save_file({name: self.stored[name].contiguous() for name in names[n::2]}, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(names[n::2], file)
        total = sum(t.numel() * t.element_size() for t in self.stored.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(self.config))
        if self.form in MODELSLIM:
            (folder / "quant_model_description.json").write_text("{}")
        return folder


def round_tokens_int8(x: Tensor) -> Tensor:
    """x [.., K] through INT8 with a scale for each row, in float64."""
    values = x.double().numpy()
    scale = (np.abs(values).max(-1, keepdims=True) / 127).astype(np.float32).astype(np.float64)
    codes = np.clip(np.rint(values / np.where(scale > 0, scale, 1)), -127, 127)
    return torch.from_numpy((codes * scale).astype(np.float32))


def round_tokens_fp8(x: Tensor) -> Tensor:
    values = x.double().numpy()
    scale = np.maximum((np.abs(values).max(-1, keepdims=True) / 448).astype(np.float32), np.float32(1 / (448 * 512)))
    codes = np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return torch.from_numpy((codes * scale).astype(np.float32))


def round_mxfp8(x: Tensor) -> Tensor:
    groups = x.double().numpy().reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    scale = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1))) - 8)
    codes = np.clip(groups / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return torch.from_numpy((codes * scale).reshape(x.shape).astype(np.float32))


ROUNDING = {
    "int8": round_tokens_int8, "int8-experts": round_tokens_int8, "w8a8-ascend": round_tokens_int8,
    "fp8-channel": round_tokens_fp8, "mxfp8": round_mxfp8,
}  # fmt: skip
