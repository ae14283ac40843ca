"""The serving stacks' formats, made by torch, ml_dtypes and rules written out once more: tensors and descriptions."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]

BY_ROW = {"int8": "int8", "int8-experts": "int8", "fp8-channel": "fp8-channel", "w8a8-ascend": "int8"}
MODELSLIM = {"w8a8-ascend": "W8A8_DYNAMIC", "mxfp8": "W8A8_MXFP8"}
PLAIN = {"w8a8-ascend": ("wq_a", "wkv", "wo_a")}  # last names of linears that stay BF16


def stays_bf16(name: str, dtype: str) -> bool:
    """Whether a quantised weight of the source becomes BF16 in the hf layout of a stack's format."""
    if dtype == "int8-experts":
        return ".experts." not in name
    return name.split(".")[-2] in PLAIN.get(dtype, ("wo_a",))


def power_of_two(rowmax: Tensor, largest: float) -> Tensor:
    """The smallest 2^k with rowmax <= largest x 2^k, by trying all k."""
    powers = torch.tensor([2.0**k for k in range(-126, 128)], dtype=torch.float64)
    fits = rowmax[:, None] <= powers[None, :] * largest
    return torch.where(rowmax == 0, 1.0, powers[fits.double().argmax(1)])


def codes_under(x: Tensor, scale: Tensor, fmt: str) -> tuple[Tensor, Tensor]:
    """Codes of rows under their scales, and what they stand for."""
    quotient = x / scale[:, None]
    if fmt == "int8":
        codes = quotient.round().clamp(-127, 127).to(torch.int8)
        return codes, codes.double() * scale[:, None]
    # ml_dtypes rounds a float64 once; torch goes through float32
    held = quotient.clamp(-448, 448).numpy().astype(ml_dtypes.float8_e4m3fn)
    codes = torch.from_numpy(held.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    return codes, torch.from_numpy(held.astype(np.float64)) * scale[:, None]


def absmax(rowmax: Tensor, fmt: str, bf16: bool = False) -> Tensor:
    exact = (rowmax / (127.0 if fmt == "int8" else 448.0)).clamp(min=2.0**-126)
    rounded = exact.numpy().astype(ml_dtypes.bfloat16 if bf16 else np.float32).astype(np.float64)
    return torch.where(rowmax == 0, 1.0, torch.from_numpy(rounded))


def by_row(x: Tensor, fmt: str, bf16: bool) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Codes, scales and losses of a weight: INT8 by the better of the two rules, FP8 by powers of two."""
    rowmax = x.abs().amax(1)
    scale = power_of_two(rowmax, 127.0 if fmt == "int8" else 448.0)
    codes, held = codes_under(x, scale, fmt)
    if fmt == "int8":
        other = absmax(rowmax, fmt, bf16)
        codes_2, held_2 = codes_under(x, other, fmt)
        better = (((held_2 - x) ** 2).cumsum(1)[:, -1] < ((held - x) ** 2).cumsum(1)[:, -1])[:, None]
        codes, held = torch.where(better, codes_2, codes), torch.where(better, held_2, held)
        scale = torch.where(better[:, 0], other, scale)
    error, inexact = held - x, held != x
    loss = {
        "rows": len(x),
        "exact_rows": int((~inexact.any(1)).sum()),
        "elements": x.numel(),
        "exact_elements": int((~inexact).sum()),
        "largest_error": float(error.abs().max() / rowmax.max()),
        "rms_error": math.sqrt(math.fsum((error**2).flatten().tolist()) / math.fsum((x**2).flatten().tolist())),
    }
    return codes, scale.float()[:, None], loss


def by_group(weight: Tensor, scale: Tensor, values: np.ndarray) -> tuple[Tensor, Tensor]:
    """MXFP8: the same numbers under the same exponents."""
    exponents = scale.view(torch.uint8)
    if weight.dtype == torch.int8:
        codes = values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return torch.from_numpy(codes).view(torch.float8_e4m3fn), exponents
    return weight, exponents.repeat_interleave(128, 0).repeat_interleave(4, 1)[: len(weight)].contiguous()


def describe(config: dict[str, Any], dtype: str) -> None:
    """Change the source's config.json into that of a release in the hf layout."""
    block = config["quantization_config"]
    if dtype.startswith("fp8") and dtype != "fp8-channel":
        config["expert_dtype"] = "fp8"
        if dtype == "fp8-bf16-wo-a":
            block = {**block, "ignored_layers": [f"{at}.attn.wo_a" for at in ("layers.0", "layers.1", "mtp.0")]}
            block["ignored_layers"].append("model.layers.2.attn.wo_a")
            config["quantization_config"] = block
        return
    del config["quantization_config"], config["expert_dtype"]
    if dtype in MODELSLIM:
        return
    kind, layout = ("float", "float-quantized") if dtype == "fp8-channel" else ("int", "int-quantized")
    numbers = {"num_bits": 8, "type": kind, "symmetric": True}
    ignore = ["head", r"re:.*attn\.wo_a$", r"re:.*compressor\.(wkv|wgate)$", r"re:.*weights_proj$", r"re:.*ffn\.gate$"]
    if dtype == "int8-experts":
        ignore += [r"re:.*attn\.(w(q_a|q_b|kv|o_b)|indexer\.wq_b)$", r"re:.*shared_experts\.w.$", r"re:.*(e|h)_proj$"]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": numbers | {"strategy": "channel", "dynamic": False},
                "input_activations": numbers | {"strategy": "token", "dynamic": True},
            }
        },
        "ignore": ignore,
    }


def modelslim_description(tensors: Tensors, dtype: str) -> dict[str, Any]:
    """quant_model_description.json: a tensor is quantised if its weight has a scale beside it."""
    kind = MODELSLIM[dtype]
    stems = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    top = {"version": "1.0.0", "model_quant_type": kind, "group_size": 0, "metadata": {}}
    return top | {name: kind if name.rpartition(".")[0] in stems else "FLOAT" for name in tensors}
