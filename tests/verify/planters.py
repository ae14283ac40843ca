"""How each defect is planted: functions that spoil tensors, ranks, folders and manifests in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_formats
import torch
from plain_releases import Tensors, decoded, exact_values, ordinary_tensors, write_manifest

EXPERT = "layers.1.ffn.experts.3.w1"
SQUARE = "mtp.0.e_proj"  # its scale is [2, 2], so its transpose has the same shape
NORM = "layers.0.attn_norm.weight"
WQ_B = "layers.1.attn.wq_b.weight"
WO_A = "layers.0.attn.wo_a.weight"
SINK = "layers.1.attn.attn_sink"


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def swap_nibbles(tensors: Tensors) -> None:
    old = as_bytes(tensors[f"{EXPERT}.weight"])
    tensors[f"{EXPERT}.weight"] = ((old >> 4) | (old << 4)).view(tensors[f"{EXPERT}.weight"].dtype)


def swap_pairs(tensors: Tensors) -> None:
    # what swapped nibbles look like once decoded: neighbours change places inside their scale group
    tensors[f"{EXPERT}.weight"] = tensors[f"{EXPERT}.weight"].unflatten(1, (-1, 2)).flip(2).flatten(1)


def rescale(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    """Decode a weight of the ordinary source with a changed scale."""

    def plant(tensors: Tensors) -> None:
        source = ordinary_tensors()
        scale = source[f"{name}.scale"]
        changed = change(as_bytes(scale)).contiguous().view(scale.dtype)
        tensors[f"{name}.weight"] = decoded(source[f"{name}.weight"], changed)

    return plant


def change_bytes(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def plant(tensors: Tensors) -> None:
        tensors[name] = change(as_bytes(tensors[name].clone())).contiguous().view(tensors[name].dtype)

    return plant


def flip_code(name: str, position: int) -> Callable[[Tensors], None]:
    def flip(codes: torch.Tensor) -> torch.Tensor:
        codes.view(-1)[position] ^= 1
        return codes

    return change_bytes(name, flip)


def swap_names(first: str, second: str) -> Callable[[Tensors], None]:
    def plant(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(first)]:
            twin = second + name.removeprefix(first)
            tensors[name], tensors[twin] = tensors[twin], tensors[name]

    return plant


def duplicate_expert(tensors: Tensors) -> None:
    for w in ("w1", "w2", "w3"):
        tensors[f"layers.1.ffn.experts.4.{w}.weight"] = tensors[f"layers.1.ffn.experts.3.{w}.weight"]


def roll_rows(name: str, parts: int) -> Callable[[Tensors], None]:
    def plant(tensors: Tensors) -> None:
        tensors[name] = torch.roll(tensors[name], tensors[name].shape[0] // parts, 0)

    return plant


def positive_zeros(tensors: Tensors) -> None:
    bits = tensors[f"{EXPERT}.weight"].view(torch.int16)
    tensors[f"{EXPERT}.weight"] = torch.where(bits == -0x8000, 0, bits).view(torch.bfloat16)


def numeric_e8m0(tensors: Tensors) -> None:
    scale = tensors[f"{EXPERT}.scale"]
    tensors[f"{EXPERT}.scale"] = scale.float().to(torch.uint8).view(torch.float8_e8m0fnu)


def swap_ranks(ranks: list[Tensors]) -> None:
    ranks[0], ranks[1] = ranks[1], ranks[0]


def swap_pieces(name: str, first: int, second: int) -> Callable[[list[Tensors]], None]:
    def plant(ranks: list[Tensors]) -> None:
        ranks[first][name], ranks[second][name] = ranks[second][name], ranks[first][name]

    return plant


def take_piece(name: str, rank: int, of: int) -> Callable[[list[Tensors]], None]:
    def plant(ranks: list[Tensors]) -> None:
        ranks[rank][name] = ranks[of][name]

    return plant


def flip_on(rank: int, name: str) -> Callable[[list[Tensors]], None]:
    def plant(ranks: list[Tensors]) -> None:
        ranks[rank][name] = ranks[rank][name].clone()
        as_bytes(ranks[rank][name])[5] ^= 1

    return plant


def drop(rank: int, name: str) -> Callable[[list[Tensors]], None]:
    def plant(ranks: list[Tensors]) -> None:
        del ranks[rank][name]

    return plant


def exchange(rank: int, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[list[Tensors]], None]:
    def plant(ranks: list[Tensors]) -> None:
        ranks[rank][name] = change(ranks[rank][name]).contiguous()

    return plant


def move_expert(ranks: list[Tensors]) -> None:
    ranks[1]["layers.1.ffn.experts.0.w1.weight"] = ranks[0].pop("layers.1.ffn.experts.0.w1.weight")


def leave_scale(ranks: list[Tensors]) -> None:
    ranks[0][f"{EXPERT}.scale"] = ordinary_tensors()[f"{EXPERT}.scale"]


def leave_wo_a_quantised(ranks: list[Tensors]) -> None:
    source = ordinary_tensors()
    for number, rank in enumerate(ranks):
        weight, scale = source[WO_A], source[WO_A.replace("weight", "scale")]
        rank[WO_A] = weight.chunk(len(ranks))[number].contiguous()
        rank[WO_A.replace("weight", "scale")] = scale.chunk(len(ranks))[number].contiguous()


def edit(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        change(document)
        (folder / file).write_text(json.dumps(document))

    return plant


def set_in(file: str, key: str, value: Any) -> Callable[[Path], None]:
    return edit(file, set_key(key, value=value))


def set_key(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def add_to_total(index: dict[str, Any]) -> None:
    index["metadata"]["total_size"] += 1


def misplace(index: dict[str, Any]) -> None:
    index["weight_map"]["embed.weight"] = "model-00002-of-00002.safetensors"


def flip_byte(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def truncate(file: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:-2])

    return plant


def drop_from_file_and_index(folder: Path) -> None:
    """A hole-free file with one tensor fewer, and an index that agrees: only the inventory misses it."""
    path, index = folder / "model-00002-of-00002.safetensors", folder / "model.safetensors.index.json"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    begin = header.pop(last)["data_offsets"][0]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length : 8 + length + begin])
    document = json.loads(index.read_text())
    document["metadata"]["total_size"] -= len(data) - 8 - length - begin
    del document["weight_map"][last]
    index.write_text(json.dumps(document))
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))


def write(file: str, text: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / file).write_text(text)

    return plant


def remove(file: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / file).unlink()

    return plant


def chmod(folder: Path) -> None:
    (folder / "tokenizer.json").chmod(0o755)


def link(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.rename(folder.parent / f"{folder.name}.elsewhere")
    path.symlink_to(folder.parent / f"{folder.name}.elsewhere")


def drop_record(manifest: dict[str, Any]) -> None:
    manifest["files"] = [record for record in manifest["files"] if record["path"] != "tokenizer.json"]


def wrong_digest(manifest: dict[str, Any]) -> None:
    manifest["tensors"][f"{EXPERT}.weight"]["blake3"] = "0" * 64


def drop_source_tensor(manifest: dict[str, Any]) -> None:
    del manifest["source"]["tensors"]["norm.weight"]


# --- the serving stacks' formats

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
