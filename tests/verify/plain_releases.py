"""Small sources and releases, written by other means than the package: torch, safetensors, ml_dtypes and plain loops.

A release is made in three steps, each of which a test can spoil: whole tensors, the ranks' tensors, the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import plain_formats
import torch
from blake3 import blake3
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

VOCAB, H, QR, NH, HD, OG, OR, E, MI, IH, ID, HC = 64, 256, 128, 8, 128, 4, 128, 8, 128, 8, 128, 4
RATIOS = (4, 128, 0)  # two layers and one MTP stage

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": VOCAB,
    "hidden_size": H,
    "num_hidden_layers": 2,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": NH,
    "num_key_value_heads": 1,
    "head_dim": HD,
    "qk_rope_head_dim": 64,
    "q_lora_rank": QR,
    "o_lora_rank": OR,
    "o_groups": OG,
    "moe_intermediate_size": MI,
    "n_routed_experts": E,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "swiglu_limit": 10.0,
    "index_n_heads": IH,
    "index_head_dim": ID,
    "index_topk": 8,
    "hc_mult": HC,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "sliding_window": 16,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "compress_ratios": list(RATIOS),
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "expert_dtype": "fp4",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}
NATIVE_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "dim": H,
    "moe_inter_dim": MI,
    "n_layers": 2,
    "n_hash_layers": 1,
    "n_heads": NH,
    "n_routed_experts": E,
    "n_shared_experts": 1,
    "n_activated_experts": 2,
    "score_func": "sqrtsoftplus",
    "route_scale": 1.5,
    "swiglu_limit": 10.0,
    "q_lora_rank": QR,
    "head_dim": HD,
    "rope_head_dim": 64,
    "o_groups": OG,
    "o_lora_rank": OR,
    "window_size": 16,
    "original_seq_len": 1024,
    "rope_theta": 10000,
    "rope_factor": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "index_n_heads": IH,
    "index_head_dim": ID,
    "index_topk": 8,
    "hc_mult": HC,
    "hc_sinkhorn_iters": 20,
    "dtype": "fp8",
    "scale_fmt": "ue8m0",
    "expert_dtype": "fp4",
    "compress_rope_theta": 160000,
    "compress_ratios": list(RATIOS),
}


def checkpoint_tensors(generator: torch.Generator, spread: int = 6, scale_dtype: str = "E8M0") -> Tensors:
    """A source's tensors. FP4 scale codes differ by up to `spread`; `scale_dtype` is that of the FP8 scales."""

    def floats(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def codes(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=generator, dtype=torch.uint8)

    out: Tensors = {}

    def linear(name: str, rows: int, columns: int) -> None:
        magnitudes, signs = codes(0, 0x7E, rows, columns), codes(0, 1, rows, columns)
        out[f"{name}.weight"] = (magnitudes | signs << 7).view(torch.float8_e4m3fn)
        scale = codes(115, 125, -(-rows // 128), -(-columns // 128)).view(torch.float8_e8m0fnu)
        out[f"{name}.scale"] = scale if scale_dtype == "E8M0" else scale.to(getattr(torch, scale_dtype))

    def expert(name: str, rows: int, columns: int) -> None:
        out[f"{name}.weight"] = codes(0, 255, rows, columns // 2).view(torch.int8)
        out[f"{name}.scale"] = codes(124 - spread, 124, rows, columns // 32).view(torch.float8_e8m0fnu)

    def hc(prefix: str, rows: int, scales: int) -> None:
        for part, shape in (("fn", (rows, HC * H)), ("base", (rows,)), ("scale", (scales,))):
            out[f"{prefix}_{part}"] = floats(*shape, dtype=torch.float32)

    def compressor(at: str, ratio: int, width: int) -> None:
        channels = width * 2 if ratio == 4 else width
        out[f"{at}.ape"] = floats(ratio, channels, dtype=torch.float32)
        out[f"{at}.wkv.weight"], out[f"{at}.wgate.weight"] = floats(channels, H), floats(channels, H)
        out[f"{at}.norm.weight"] = floats(width)

    out["embed.weight"], out["head.weight"], out["norm.weight"] = floats(VOCAB, H), floats(VOCAB, H), floats(H)
    hc("hc_head", HC, 1)
    for at, ratio, hashed in (("layers.0", 4, True), ("layers.1", 128, False), ("mtp.0", 0, False)):
        for sub in ("attn", "ffn"):
            hc(f"{at}.hc_{sub}", (2 + HC) * HC, 3)
            out[f"{at}.{sub}_norm.weight"] = floats(H)
        out[f"{at}.attn.attn_sink"] = floats(NH, dtype=torch.float32)
        linear(f"{at}.attn.wq_a", QR, H)
        out[f"{at}.attn.q_norm.weight"] = floats(QR)
        linear(f"{at}.attn.wq_b", NH * HD, QR)
        linear(f"{at}.attn.wkv", HD, H)
        out[f"{at}.attn.kv_norm.weight"] = floats(HD)
        linear(f"{at}.attn.wo_a", OG * OR, NH * HD // OG)
        linear(f"{at}.attn.wo_b", H, OG * OR)
        if ratio:
            compressor(f"{at}.attn.compressor", ratio, HD)
        if ratio == 4:
            linear(f"{at}.attn.indexer.wq_b", IH * ID, QR)
            out[f"{at}.attn.indexer.weights_proj.weight"] = floats(IH, H)
            compressor(f"{at}.attn.indexer.compressor", ratio, ID)
        out[f"{at}.ffn.gate.weight"] = floats(E, H)
        if hashed:
            out[f"{at}.ffn.gate.tid2eid"] = torch.randint(0, E, (VOCAB, 2), generator=generator)
        else:
            out[f"{at}.ffn.gate.bias"] = floats(E, dtype=torch.float32)
        for w, rows, columns in (("w1", MI, H), ("w2", H, MI), ("w3", MI, H)):
            linear(f"{at}.ffn.shared_experts.{w}", rows, columns)
            for e in range(E):
                expert(f"{at}.ffn.experts.{e}.{w}", rows, columns)
    linear("mtp.0.e_proj", H, H)
    linear("mtp.0.h_proj", H, H)
    for norm in ("enorm", "hnorm", "norm"):
        out[f"mtp.0.{norm}.weight"] = floats(H)
    hc("mtp.0.hc_head", HC, 1)
    return out


@cache
def ordinary_tensors() -> Tensors:
    """The tensors of the source that most tests use. Not to be changed in place."""
    return checkpoint_tensors(torch.Generator().manual_seed(0))


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor as a file holds them."""
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def write_source(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Path:
    """A checkpoint of two files with index, configs and companions, one of them in a sub-folder."""
    (folder / "encoding").mkdir(parents=True)
    (folder / "inference").mkdir()
    names = list(tensors)
    half = len(names) // 2
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(len(raw(tensor)) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / "inference" / "config.json").write_text(json.dumps(NATIVE_CONFIG))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "encoding" / "encoding_dsv4.py").write_text("# how a chat becomes tokens\n")
    return folder


def fp4_floats(packed: torch.Tensor) -> np.ndarray:
    """Values of packed FP4 as float64, by ml_dtypes."""
    stored = packed.view(torch.uint8).numpy()
    codes = np.stack([stored & 15, stored >> 4], axis=-1).reshape(stored.shape[0], -1)
    return codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)


def scale_floats(scale: torch.Tensor, rows: int, columns: int, shape: tuple[int, ...]) -> np.ndarray:
    """A scale spread over the elements of a weight of `shape`, as float64."""
    if scale.dtype == torch.float8_e8m0fnu:
        values = scale.view(torch.uint8).numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    else:
        values = scale.to(torch.float64).numpy()
    return values.repeat(rows, axis=0).repeat(columns, axis=1)[: shape[0], : shape[1]]


def decoded(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A quantised weight as BF16, by ml_dtypes."""
    exact = exact_values(weight, scale)
    with np.errstate(over="ignore"):  # a test overflows on purpose
        bits = exact.astype(ml_dtypes.bfloat16).view(np.uint16)
    return torch.from_numpy(bits).view(torch.bfloat16)


def repacked(weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP4 as FP8 with one scale a 128x128 tile, by DeepSeek's rule and torch's rounding."""
    values = torch.from_numpy(fp4_floats(weight)).float()
    old = torch.from_numpy(scale_floats(scale, 1, 32, tuple(values.shape))).float()
    tiles = old.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).amax((1, 3)) / 64
    new = tiles.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return (values * old / new).to(torch.float8_e4m3fn), tiles.to(torch.float8_e8m0fnu)


@dataclass
class Whole:
    """The tensors of a release before they are cut, what happened to the elements, and what weights lost."""

    tensors: Tensors = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("copied", "exact", "rounded", "repacked", "lost"), 0)
    )
    inexact: dict[str, int] = field(default_factory=dict)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, elements: int, kind: str, lost: int = 0) -> None:
        """Count the elements of a weight."""
        self.counts[kind] += elements - lost
        self.counts["lost"] += lost
        self.inexact |= {name: lost} if lost else {}


def whole_tensors(source: Tensors, dtype: str, mp: bool) -> Whole:
    """Make the tensors of a release."""
    made = Whole()
    out = made.tensors
    for name, tensor in source.items():
        stem = name.removesuffix(".weight")
        scale_name = f"{stem}.scale"
        if name.endswith(".scale"):
            continue
        if scale_name not in source or not name.endswith(".weight"):
            out[name] = tensor
            made.add(name, tensor.numel(), "copied")
            continue
        scale = source[scale_name]
        elements = tensor.numel() * (2 if tensor.dtype == torch.int8 else 1)
        stack = dtype in plain_formats.BY_ROW or dtype in ("mxfp8", "fp8-bf16-wo-a")
        if dtype == "bf16" or (mp and ".wo_a." in name) or (stack and plain_formats.stays_bf16(name, dtype)):
            out[name] = decoded(tensor, scale)
            made.add(name, elements, "exact")
        elif dtype in plain_formats.BY_ROW:
            bf16 = dtype == "w8a8-ascend"
            exact = torch.from_numpy(exact_values(tensor, scale))
            out[name], rows, loss = plain_formats.by_row(exact, plain_formats.BY_ROW[dtype], bf16)
            out[f"{stem}.weight_scale"] = rows
            if bf16:
                out[f"{stem}.weight_offset"] = torch.zeros_like(rows)
            lost = loss["elements"] - loss["exact_elements"]
            made.add(name, elements, "repacked", lost)
            made.losses |= {name: loss} if lost else {}
        elif dtype == "mxfp8":
            values = fp4_floats(tensor) if tensor.dtype == torch.int8 else np.zeros(0)
            out[name], out[f"{stem}.weight_scale"] = plain_formats.by_group(tensor, scale, values)
            made.add(name, elements, "repacked" if tensor.dtype == torch.int8 else "copied")
        elif dtype.startswith("fp8") and tensor.dtype == torch.int8:
            out[name], tiles = repacked(tensor, scale)
            new = out[name].double().numpy() * scale_floats(tiles, 128, 128, tuple(out[name].shape))
            lost = int((new != exact_values(tensor, scale)).sum())
            out[scale_name] = tiles if mp or dtype == "fp8-e8m0" else tiles.float()
            made.add(name, elements, "repacked", lost)
        else:
            out[name] = tensor.view(torch.float4_e2m1fn_x2) if mp and tensor.dtype == torch.int8 else tensor
            out[scale_name] = scale
            made.add(name, elements, "copied")
    if dtype in plain_formats.MODELSLIM:
        out["mtp.0.emb.tok_emb.weight"] = out["embed.weight"].clone()  # save_file refuses shared memory
        out["mtp.0.head.weight"] = out["head.weight"].clone()
    return made


def exact_values(weight: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """A quantised weight as float64."""
    if weight.dtype == torch.int8:
        values, block = fp4_floats(weight), (1, 32)
    else:
        values, block = weight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64), (128, 128)
    exact: np.ndarray = values * scale_floats(scale, *block, values.shape)
    return exact


def cut(name: str, tensor: torch.Tensor, rank: int, mp: int, o_groups: str | None) -> torch.Tensor | None:
    """What `rank` of `mp` holds of a tensor; None if nothing."""
    expert = re.search(r"\.experts\.(\d+)\.", name)
    if expert:
        return tensor if int(expert[1]) // (E // mp) == rank else None
    key = name.removesuffix(".weight").removesuffix(".scale").split(".")[-1]
    if key in {"embed", "head", "wq_b", "attn_sink", "weights_proj"}:
        return torch.chunk(tensor, mp, 0)[rank].contiguous()
    if key not in {"wo_a", "wo_b"}:
        return tensor
    dimension = 0 if key == "wo_a" else 1
    if o_groups is None:
        return torch.chunk(tensor, mp, dimension)[rank].contiguous()
    sharing = mp // OG
    if o_groups == "shared":
        return torch.chunk(tensor, OG, dimension)[rank // sharing].contiguous()
    if key == "wo_b":
        return torch.chunk(tensor, mp, 1)[rank].contiguous()
    return torch.chunk(torch.chunk(tensor, OG, 0)[rank // sharing], sharing, 1)[rank % sharing].contiguous()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _header(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


_DTYPE_NAMES = {
    torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.int8: "I8", torch.float16: "F16",
    torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e8m0fnu: "F8_E8M0", torch.float4_e2m1fn_x2: "F4",
}  # fmt: skip


def tensor_record(tensor: torch.Tensor) -> dict[str, Any]:
    """A tensor as a manifest records it."""
    shape = list(tensor.shape)
    if tensor.dtype == torch.float4_e2m1fn_x2:
        shape[-1] *= 2
    return {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": shape, "blake3": blake3(raw(tensor)).hexdigest()}


def source_record(folder: Path, tensors: Tensors) -> dict[str, Any]:
    """A source as a manifest records it."""
    files = sorted(folder.glob("*.safetensors"))
    identity = "".join(f"{f.name}\n{f.stat().st_size}\n{hashlib.sha256(_header(f)).hexdigest()}\n" for f in files)
    return {
        "repo": None,
        "revision": None,
        "license": None,
        "identity": hashlib.sha256(identity.encode()).hexdigest(),
        "config_sha256": sha256(folder / "config.json"),
        "files": [
            {"path": f.name, "size": f.stat().st_size, "header_sha256": hashlib.sha256(_header(f)).hexdigest()}
            for f in files
        ],
        "tensors": {name: blake3(raw(tensor)).hexdigest() for name, tensor in tensors.items()},
    }


@dataclass
class Maker:
    """Writes releases of one source. Each hook spoils the result of a step; files are recorded between the last two."""

    source: Path
    tensors: Tensors
    dtype: str = "bf16"
    mp: int | None = None
    o_groups: str | None = None
    parts: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    made: dict[tuple[str, bool], Whole] = field(default_factory=dict)
    spoil_whole: Callable[[Tensors], None] = lambda tensors: None
    spoil_ranks: Callable[[list[Tensors]], None] = lambda ranks: None
    spoil_folder: Callable[[Path], None] = lambda folder: None
    spoil_manifest: Callable[[dict[str, Any]], None] = lambda manifest: None

    def of(self, release: str) -> Maker:
        """A maker of another release: `bf16-hf`, `native-mp4`, `bf16-mp8-shared`, `fp8-mp2-parts3`, `int8-experts-hf`.

        What scales by row cost the random weights of the source is allowed.
        """
        found = re.fullmatch(r"(.+?)-(hf|mp\d+)((?:-\w+)*)", release)
        assert found is not None
        dtype, layout, more = found[1], found[2], found[3].split("-")
        mp = None if layout == "hf" else int(layout.removeprefix("mp"))
        mode = next((word for word in more if word in {"shared", "split"}), None)
        parts = next((int(word.removeprefix("parts")) for word in more if word.startswith("parts")), 1)
        options = {"lossy_repack": "allow"} if dtype in plain_formats.BY_ROW else {}
        return replace(self, dtype=dtype, mp=mp, o_groups=mode, parts=parts, options=self.options | options)

    def write(self, folder: Path) -> Path:
        """Write the release into `folder`, which must not exist."""
        shutil.copytree(self.source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
        kind = (self.dtype, self.mp is not None)
        if kind not in self.made:
            self.made[kind] = whole_tensors(self.tensors, *kind)
        tensors = dict(self.made[kind].tensors)
        self.spoil_whole(tensors)
        ranks = [dict(tensors)]
        if self.mp is not None:
            cuts = [{n: cut(n, t, r, self.mp, self.o_groups) for n, t in tensors.items()} for r in range(self.mp)]
            ranks = [{n: t for n, t in rank.items() if t is not None} for rank in cuts]
        self.spoil_ranks(ranks)
        self._write_tensors(folder, ranks)
        self._write_configs(folder, tensors)
        self.spoil_folder(folder)
        write_manifest(folder, self._manifest(tensors, self.made[kind]))
        manifest = json.loads((folder / "manifest.json").read_text())
        self.spoil_manifest(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    def _write_tensors(self, folder: Path, ranks: list[Tensors]) -> None:
        weight_map: dict[str, str] = {}
        count = 2 if self.mp is None else self.parts
        for rank, held in enumerate(ranks):
            names = list(held)
            for part in range(count):
                file = f"{self.stem}-{part + 1:05}-of-{count:05}.safetensors"
                if self.mp is not None:
                    file = f"model{rank}-mp{self.mp}" + (f"-part{part + 1}" if count > 1 else "") + ".safetensors"
                chosen = names[part::count]
                save_file({name: held[name].contiguous() for name in chosen}, folder / file, {"format": "pt"})
                weight_map |= dict.fromkeys(chosen, file)
        if self.mp is None:
            total = sum(len(raw(tensor)) for tensor in ranks[0].values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / f"{self.stem}.safetensors.index.json").write_text(json.dumps(index))

    @property
    def stem(self) -> str:
        """What the names of tensor files in the hf layout begin with."""
        return "quant_model_weights" if self.dtype in plain_formats.MODELSLIM else "model"

    def _write_configs(self, folder: Path, tensors: Tensors) -> None:
        config = json.loads((folder / "config.json").read_text())
        native = dict(NATIVE_CONFIG)
        if self.dtype == "bf16":
            del config["quantization_config"], config["expert_dtype"], native["expert_dtype"], native["scale_fmt"]
            native["dtype"] = "bf16"
        elif self.dtype != "native":
            plain_formats.describe(config, self.dtype)
            native["expert_dtype"] = "fp8"
        (folder / "config.json").write_text(json.dumps(config))
        if self.dtype in plain_formats.MODELSLIM:
            description = plain_formats.modelslim_description(tensors, self.dtype)
            (folder / "quant_model_description.json").write_text(json.dumps(description))
        if self.dtype in plain_formats.BY_ROW or self.dtype in plain_formats.MODELSLIM:
            (folder / "inference" / "config.json").unlink()  # DeepSeek's code loads no such release
        else:
            (folder / "inference" / "config.json").write_text(json.dumps(native))

    def _manifest(self, tensors: Tensors, made: Whole) -> dict[str, Any]:
        target = {"dtype": self.dtype, "layout": "mp" if self.mp else "hf", "mp": self.mp, "o_groups": self.o_groups}
        return {
            "schema_version": 1,
            "tool": {"name": "flagrelease", "version": "0"},
            "model": "tiny",
            "target": target,
            "source": source_record(self.source, self.tensors),
            "recipe": None,
            "options": self.options,
            "plan": "0",
            "elements": made.counts,
            "inexact": made.inexact,
            "losses": made.losses,
            "tensors": {name: tensor_record(tensor) for name, tensor in tensors.items()},
        }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with records of the files that are in `folder` now."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    manifest["files"] = [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
