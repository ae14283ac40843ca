"""Checkpoints with random weights, of any dimensions, in the form DeepSeek publishes: for demos, benchmarks and tests.

The weights mean nothing; formats, names, shapes and the files are those of a real release. Every tensor is drawn from
its own name, so a checkpoint has the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flagrelease.formats.formats import FP4, FP8, block_counts, weight_of_scale
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.model.v4.config import ModelConfig, native_arguments, parse_config
from flagrelease.model.v4.inventory import inventory
from flagrelease.shard.header import build_header, tensor_bytes
from flagrelease.shard.index import INDEX_NAME

_ORDER = {"I64": 0, "F32": 1, "BF16": 2, "F16": 2}  # the safetensors library puts wide dtypes first
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Stored:
    """What is random about a checkpoint beside its weights: how the quantised tensors are stored."""

    experts: Literal["fp4", "fp8"] = "fp4"
    scale_dtype: str = "F8_E8M0"  # of FP8 weights: F8_E8M0, F32, BF16 or F16; FP4 always has F8_E8M0
    scale_suffix: str = ".scale"
    fp4_dtype: str = "I8"  # of packed FP4: I8, U8 or F4


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A `config.json` of the whole architecture at dimensions that mp16 cuts at whole blocks; about 8 MB of weights."""
    config: dict[str, Any] = {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": 512, "hidden_size": 256,
        "num_hidden_layers": 3, "num_hash_layers": 1, "num_nextn_predict_layers": 1, "num_attention_heads": 16,
        "num_key_value_heads": 1, "head_dim": 128, "qk_rope_head_dim": 64, "q_lora_rank": 128, "o_lora_rank": 256,
        "o_groups": 8, "moe_intermediate_size": 128, "n_routed_experts": 16, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0,
        "index_n_heads": 16, "index_head_dim": 128, "index_topk": 16, "hc_mult": 4, "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "sliding_window": 32, "rope_theta": 10000, "compress_rope_theta": 160000,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 65536,
                         "type": "yarn"},
        "compress_ratios": [0, 4, 128, 0], "max_position_embeddings": 1048576, "bos_token_id": 0, "eos_token_id": 1,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "expert_dtype": "fp4",
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
    }  # fmt: skip
    return config | changes


def write_checkpoint(
    folder: Path, config: dict[str, Any], stored: Stored = Stored(), seed: int = 0, holes: bool = False
) -> None:
    """Write a checkpoint: files for embed, each layer, head and each MTP stage; index, configs, a text.

    With `holes` the data are holes in sparse files: a full-size V4-Pro to plan with takes a few megabytes.
    """
    parsed = parse_config(config, folder)
    units: dict[str, list[TensorSpec]] = defaultdict(list)
    for spec in inventory(parsed).values():
        head, _, rest = spec.name.partition(".")
        unit = f"{head}.{rest.partition('.')[0]}" if head in {"layers", "mtp"} else head
        units[unit if unit.startswith(("layers", "mtp", "embed")) else "head"].append(spec)
    order = ["embed", *(u for u in units if u.startswith("layers")), "head", *(u for u in units if u.startswith("mtp"))]
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for number, unit in enumerate(order, start=1):
        name = f"model-{number:05d}-of-{len(order):05d}.safetensors"
        tensors = [tensor for spec in units[unit] for tensor in stored_tensors(spec, parsed, stored)]
        tensors.sort(key=lambda tensor: (_ORDER.get(tensor[1], 3), tensor[0]))
        with (folder / name).open("wb") as file:
            file.write(build_header(tensors))
            for tensor, dtype, shape in tensors:
                weight_map[tensor] = name
                total += tensor_bytes(dtype, shape)
                if holes:
                    file.truncate(file.seek(tensor_bytes(dtype, shape), 1))
                else:
                    _write_random(file, tensor, dtype, tensor_bytes(dtype, shape), seed)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX_NAME, index)
    _write_json(folder / "config.json", config)
    native = native_arguments(parsed) | {"dtype": "fp8", "scale_fmt": "ue8m0"}
    if stored.experts == "fp4":
        native["expert_dtype"] = "fp4"
    _write_json(folder / "inference" / "config.json", native)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True})
    readme = "Random weights in the form of DeepSeek-V4, written by flagrelease. They mean nothing.\n"
    (folder / "README.md").write_text(readme, encoding="utf-8")


def stored_tensors(spec: TensorSpec, config: ModelConfig, stored: Stored) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of what a checkpoint stores for one logical tensor: the weight, and its scale."""
    if spec.storage not in (Storage.LINEAR, Storage.EXPERT):
        return [(spec.name, spec.storage.value.plain, spec.shape)]
    scale = spec.name.removesuffix(".weight") + stored.scale_suffix
    is_fp4 = spec.storage is Storage.EXPERT and stored.experts == "fp4"
    fmt, dtype = (FP4, stored.fp4_dtype) if is_fp4 else (FP8, FP8.weight_dtypes[0])
    blocks = block_counts(spec.shape, fmt.block(config.block_size, spec.shape[-1]) or (128, 128))
    scale_dtype = FP4.scale_dtypes[0] if is_fp4 else stored.scale_dtype
    return [(spec.name, dtype, fmt.stored_shape(dtype, spec.shape)), (scale, scale_dtype, blocks)]


def _write_random(file: Any, name: str, dtype: str, nbytes: int, seed: int) -> None:
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    for begin in range(0, nbytes, _CHUNK):
        file.write(_random(generator, name, dtype, min(_CHUNK, nbytes - begin)).tobytes())


def _random(generator: np.random.Generator, name: str, dtype: str, nbytes: int) -> NDArray[Any]:
    if dtype in FP4.weight_dtypes:
        return generator.integers(0, 256, nbytes, dtype=np.uint8)
    if dtype == "F8_E4M3":
        codes = generator.integers(0, 256, nbytes, dtype=np.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0x38  # no NaN: 1.0
        return codes
    if dtype == "F8_E8M0":
        return generator.integers(114, 122, nbytes, dtype=np.uint8)
    if dtype == "I64":
        return generator.integers(0, 2, nbytes // 8, dtype=np.int64)
    values = generator.standard_normal(nbytes // {"F32": 4, "BF16": 2, "F16": 2}[dtype], dtype=np.float32)
    if weight_of_scale(name) is not None:
        values = np.exp2(np.rint(values * 2) - 9).astype(np.float32)
    if dtype == "F32":
        return values
    return values.astype(np.float16) if dtype == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
