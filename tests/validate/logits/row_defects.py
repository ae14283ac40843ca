"""Defects of a converter of the serving stacks' formats, planted into releases whose manifests agree with them.

Each is in one layer: a fault of one kind of weight is seldom in all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from defective_ports import LAYER, Tensors, spoil_tensors
from torch import Tensor

EXPERTS = f"layers.{LAYER}.ffn.experts."
WO_B = f"layers.{LAYER}.attn.wo_b.weight"
Plant = Callable[[Tensors], None]


def _coded(tensors: Tensors, which: str = EXPERTS, last: str = "") -> list[str]:
    """Names of weights with a scale beside them."""
    names = [name for name in tensors if name.startswith(which) and name.endswith(f"{last}.weight")]
    return [name for name in names if f"{name}_scale" in tensors]


def neighbours_scales(tensors: Tensors) -> None:
    """Every row of the layer's experts is read with the scale of the row before it."""
    for name in _coded(tensors):
        tensors[f"{name}_scale"] = tensors[f"{name}_scale"].roll(1, 0)


def neighbours_scales_of_wo_b(tensors: Tensors) -> None:
    """The same in one weight of the attention."""
    tensors[f"{WO_B}_scale"] = tensors[f"{WO_B}_scale"].roll(1, 0)


def another_rows_absmax(tensors: Tensors) -> None:
    """The scale is that of the next row's largest number, and codes are made with it: large ones are clipped."""
    for name in _coded(tensors):
        codes, scale = tensors[name], tensors[f"{name}_scale"]
        largest = 127 if codes.dtype == torch.int8 else 448
        values = codes.float() * scale
        wrong = values.abs().amax(1, keepdim=True).roll(-1, 0) / largest
        made = (values / wrong).clamp(-largest, largest)
        tensors[name] = made.round().to(torch.int8) if largest == 127 else made.to(codes.dtype)
        tensors[f"{name}_scale"] = wrong


def transposed_codes(tensors: Tensors) -> None:
    """The codes of one matrix of each expert are stored with rows and columns exchanged."""
    for name in _coded(tensors, last=".w2"):
        tensors[name] = _as_bytes(tensors[name]).mT.reshape(tensors[name].shape).view(tensors[name].dtype)


def magnitude_and_sign(tensors: Tensors) -> None:
    """Negative INT8 codes as if a sign bit and a magnitude were stored: -128 - code."""
    for name in _coded(tensors, last=".w1"):
        codes = tensors[name].int()
        tensors[name] = torch.where(codes < 0, -128 - codes, codes).to(torch.int8)


def halved_scales(tensors: Tensors) -> None:
    """Scales of one matrix of each expert are one power of two too small."""
    for name in _coded(tensors, last=".w1"):
        scale = tensors[f"{name}_scale"]
        tensors[f"{name}_scale"] = scale - 1 if scale.dtype == torch.uint8 else scale / 2


def _as_bytes(codes: Tensor) -> Tensor:
    return codes.view(torch.uint8)


BY_ROW: dict[str, Plant] = {
    "experts read with the neighbouring row's scale": neighbours_scales,
    "wo_b read with the neighbouring row's scale": neighbours_scales_of_wo_b,
    "experts quantised with another row's absmax": another_rows_absmax,
    "w2 of experts transposed": transposed_codes,
    "scales of w1 halved": halved_scales,
}
DEFECTS: dict[str, dict[str, Plant]] = {
    "int8": BY_ROW | {"w1 of experts with sign and magnitude": magnitude_and_sign},
    "fp8-channel": BY_ROW,
    "mxfp8": {
        "experts read with the neighbouring row's scale": neighbours_scales,
        "w2 of experts transposed": transposed_codes,
        "scales of w1 halved": halved_scales,
    },
}


def plant(release: Path, defect: Plant) -> None:
    """Change the release and its manifest."""
    spoil_tensors(release, defect)
