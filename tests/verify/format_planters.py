"""How the defects of the serving stacks' formats are planted, in the form of `planters.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_formats
import torch
from plain_releases import Tensors, exact_values, ordinary_tensors
from planters import EXPERT, as_bytes, change_bytes, edit, swap_names

W2 = "layers.0.ffn.experts.0.w2"


def neighbouring_row_scale(tensors: Tensors) -> None:
    name = f"{EXPERT}.weight_scale"
    tensors[name] = torch.cat([tensors[name][:1], tensors[name][:-1]])


def absmax_of_exact_rows(tensors: Tensors) -> None:
    """INT8 rows that a power of two holds exactly, stored by absmax / 127 as vendors do."""
    source = ordinary_tensors()
    x = torch.from_numpy(exact_values(source[f"{W2}.weight"], source[f"{W2}.scale"]))
    scale = tensors[f"{W2}.weight_scale"].double()[:, 0]
    exact = (tensors[f"{W2}.weight"].double() * scale[:, None] == x).all(1)
    assert exact.any()
    scale = torch.where(exact, plain_formats.absmax(x.abs().amax(1), "int8"), scale)
    tensors[f"{W2}.weight"] = plain_formats.codes_under(x, scale, "int8")[0]
    tensors[f"{W2}.weight_scale"] = scale.float()[:, None]


def code_minus_128(tensors: Tensors) -> None:
    name = f"{EXPERT}.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][5, 9] = -128


def set_element(name: str, row: int, value: float) -> Callable[[Tensors], None]:
    def plant(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][row, 0] = value

    return plant


def scale_of_float32(tensors: Tensors) -> None:
    """A scale as absmax / 127 gives it, though the loader keeps BF16 of it."""
    name = "layers.1.attn.wq_b.weight_scale"
    tensors[name] = tensors[name] * (1 + 2.0**-12)


def expert_of_the_source(ranks: list[Tensors]) -> None:
    source = ordinary_tensors()
    del ranks[0][f"{EXPERT}.weight_scale"]
    ranks[0] |= {name: source[name] for name in (f"{EXPERT}.weight", f"{EXPERT}.scale")}


def transpose(name: str) -> Callable[[Tensors], None]:
    def plant(tensors: Tensors) -> None:
        tensors[name] = as_bytes(tensors[name]).T.contiguous().view(tensors[name].dtype)

    return plant


def scale_bytes_as_numbers(tensors: Tensors) -> None:
    """What vLLM makes of E8M0 scales of FP8 experts."""
    name = f"{EXPERT}.scale"
    tensors[name] = tensors[name].log2() + 127


def e8m0_scales(tensors: Tensors) -> None:
    name = f"{EXPERT}.scale"
    tensors[name] = tensors[name].to(torch.float8_e8m0fnu)


def swap_ascend_copies(tensors: Tensors) -> None:
    swap_names("mtp.0.emb.tok_emb.weight", "mtp.0.head.weight")(tensors)


def no_negative_zeros(tensors: Tensors) -> None:
    change_bytes(f"{EXPERT}.weight", lambda codes: torch.where(codes == 0x80, 0, codes).to(torch.uint8))(tensors)


def ignore_without(part: str) -> Callable[[Path], None]:
    def change(config: dict[str, Any]) -> None:
        ignore = config["quantization_config"]["ignore"]
        config["quantization_config"]["ignore"] = [entry for entry in ignore if part not in entry]

    return edit("config.json", change)


def ignore_with(entry: str) -> Callable[[Path], None]:
    return edit("config.json", lambda config: config["quantization_config"]["ignore"].append(entry))


def drop_key(file: str, *path: str) -> Callable[[Path], None]:
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return edit(file, change)


def expert_dtype_inside(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["expert_dtype"] = config.pop("expert_dtype")

    edit("config.json", change)(folder)


def untrue_loss(manifest: dict[str, Any]) -> None:
    manifest["losses"]["layers.1.attn.wq_b.weight"]["rms_error"] *= 1 + 1e-9


def untrue_rows(manifest: dict[str, Any]) -> None:
    manifest["losses"]["layers.1.attn.wq_b.weight"]["exact_rows"] += 1


def loss_of_an_exact_weight(manifest: dict[str, Any]) -> None:
    manifest["losses"]["norm.weight"] = manifest["losses"]["layers.1.attn.wq_b.weight"]


def loss_left_out(manifest: dict[str, Any]) -> None:
    del manifest["losses"]["layers.1.attn.wq_b.weight"]
