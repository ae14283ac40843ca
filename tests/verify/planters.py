"""How each defect is planted: functions that spoil tensors, ranks, folders and manifests in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain_releases import Tensors, decoded, ordinary_tensors, write_manifest

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
