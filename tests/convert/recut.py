"""A second way from a source checkpoint to a release, for tests: literal, in memory, with other people's libraries.

It reads with the safetensors library's layout by hand, decodes with ml_dtypes, and cuts by rules written down here from
DeepSeek's and FlagOS' scripts. It shares no code with flagrelease.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, header shape, bytes

_NUMPY = {
    "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I8": np.int8, "U8": np.uint8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


def read_file(path: Path) -> Stored:
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    header.pop("__metadata__", None)
    data = blob[8 + length :]
    return {
        name: (e["dtype"], tuple(e["shape"]), data[e["data_offsets"][0] : e["data_offsets"][1]])
        for name, e in header.items()
    }


def read_folder(folder: Path) -> Stored:
    tensors: Stored = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_file(path)
    return tensors


def array(stored: tuple[str, tuple[int, ...], bytes]) -> np.ndarray:
    dtype, shape, data = stored
    return np.frombuffer(data, dtype=_NUMPY[dtype]).reshape(shape)


def decode(weight: tuple[str, tuple[int, ...], bytes], scale: tuple[str, tuple[int, ...], bytes]) -> np.ndarray:
    """Float32 values: exact for power-of-two scales."""
    factors = array(scale).astype(np.float32)
    if weight[0] in {"I8", "U8", "F4"}:
        packed = np.frombuffer(weight[2], dtype=np.uint8).reshape(weight[1][0], -1)
        nibbles = np.empty((packed.shape[0], packed.shape[1] * 2), dtype=np.uint8)
        nibbles[:, 0::2], nibbles[:, 1::2] = packed & 15, packed >> 4
        values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        return values * np.repeat(factors, 32, axis=1)
    values = array(weight).astype(np.float32)
    spread = np.repeat(np.repeat(factors, 128, axis=0), 128, axis=1)
    return values * spread[: values.shape[0], : values.shape[1]]


def bf16(values: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return "BF16", values.shape, values.astype(ml_dtypes.bfloat16).tobytes()


def repack(weight: tuple, scale: tuple) -> tuple[tuple, tuple]:
    """FP4 to FP8 by DeepSeek's rule, tile by tile."""
    values = decode(weight, scale)
    old = np.frombuffer(scale[2], dtype=np.uint8).reshape(scale[1])
    rows, cols = -(-values.shape[0] // 128), -(-values.shape[1] // 128)
    new = np.zeros((rows, cols), dtype=np.uint8)
    out = np.empty(values.shape, dtype=ml_dtypes.float8_e4m3fn)
    for i in range(rows):
        for j in range(cols):
            new[i, j] = max(int(old[128 * i : 128 * i + 128, 4 * j : 4 * j + 4].max()) - 6, 0)
            tile = values[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
            with np.errstate(over="ignore"):
                scaled = tile.astype(np.float64) / 2.0 ** (int(new[i, j]) - 127)
            out[128 * i : 128 * i + 128, 128 * j : 128 * j + 128] = scaled.astype(np.float32).astype(out.dtype)
    return ("F8_E4M3", values.shape, out.tobytes()), ("F8_E8M0", new.shape, new.tobytes())


def whole(source: Stored, dtype: str, mp: bool) -> Stored:
    """The tensors of a release before they are cut."""
    out: Stored = {}
    for name, stored in source.items():
        if name.endswith(".scale"):
            continue
        scale_name = name.removesuffix(".weight") + ".scale"
        scale = source.get(scale_name)
        if scale is None:
            out[name] = stored
        elif dtype == "bf16" or (mp and ".wo_a." in name):
            out[name] = bf16(decode(stored, scale))
        elif dtype == "fp8" and stored[0] == "I8":
            out[name], tiles = repack(stored, scale)
            out[scale_name] = tiles if mp else ("F32", tiles[1], array(tiles).astype(np.float32).tobytes())
        else:
            if mp and stored[0] == "I8":
                stored = ("F4", (stored[1][0], stored[1][1] * 2), stored[2])
            out[name], out[scale_name] = stored, scale
    return out


def piece(name: str, stored: tuple, config: dict, rank: int, mp: int, o_groups: str) -> tuple | None:
    """What `rank` of `mp` holds of a tensor, None for another rank's expert."""
    parts = name.split(".")
    if "experts" in parts:
        per_rank = config["n_routed_experts"] // mp
        return stored if int(parts[parts.index("experts") + 1]) // per_rank == rank else None
    dtype, shape, data = stored
    matrix = np.frombuffer(data, dtype=np.uint8).reshape(shape[0] if shape else 1, -1)
    groups = config["o_groups"]
    key = parts[-1] if parts[-1] == "attn_sink" else parts[-2] if len(parts) > 1 else parts[-1]
    if key in {"embed", "head", "wq_b", "attn_sink", "weights_proj", "markov_w1", "markov_w2"}:
        matrix = np.split(matrix, mp, axis=0)[rank]
    elif key == "wo_a":
        npg = max(1, mp // groups)
        matrix = np.split(matrix, min(mp, groups), axis=0)[rank // npg]
        if o_groups == "split" and npg > 1:
            matrix = np.split(matrix, npg, axis=1)[rank % npg]
    elif key == "wo_b":
        npg = max(1, mp // groups)
        if o_groups == "split" or npg == 1:
            matrix = np.split(matrix, mp, axis=1)[rank]
        else:
            matrix = np.split(matrix, groups, axis=1)[rank // npg]
    bits = {"F4": 4, "BF16": 16, "F16": 16, "F32": 32, "I64": 64}.get(dtype, 8)
    cut_shape = (matrix.shape[0],) if len(shape) == 1 else (matrix.shape[0], matrix.shape[1] * 8 // bits)
    return dtype, cut_shape, np.ascontiguousarray(matrix).tobytes()


def ranks(source: Stored, config: dict, dtype: str, mp: int, o_groups: str = "shared") -> list[Stored]:
    tensors = whole(source, dtype, mp=True)
    return [
        {
            name: cut
            for name, stored in tensors.items()
            if (cut := piece(name, stored, config, rank, mp, o_groups)) is not None
        }
        for rank in range(mp)
    ]
