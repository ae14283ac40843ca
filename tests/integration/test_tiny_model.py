"""The shipped tiny checkpoint: its inventory against the formulas, its model against transformers, its answers."""

import hashlib
import json
import math
import re
import struct
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
sys.path.insert(0, str(TINY))

import checkpoint  # noqa: E402
import evaluate  # noqa: E402
import model  # noqa: E402
import tasks  # noqa: E402

CHECKPOINT = TINY / "flagrelease-tiny-v4"
CONFIG = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
Shape = tuple[str, list[int]]


def stored() -> dict[str, tuple[str, Shape]]:
    """Name -> (file, (dtype, shape)), from the headers, read without any library."""
    found = {}
    for path in sorted(CHECKPOINT.glob("model-*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        header.pop("__metadata__")
        found |= {name: (path.name, (meta["dtype"], meta["shape"])) for name, meta in header.items()}
    return found


def quantized(name: str, rows: int, columns: int) -> dict[str, Shape]:
    """An FP8 weight and its scales."""
    return {
        f"{name}.weight": ("F8_E4M3", [rows, columns]),
        f"{name}.scale": ("F8_E8M0", [math.ceil(rows / 128), math.ceil(columns / 128)]),
    }


def compressor(name: str, channels: int, size: int, ratio: int) -> dict[str, Shape]:
    """A compressor with `channels` projection rows and head dimension `size`."""
    return {
        f"{name}.ape": ("F32", [ratio, channels]),
        f"{name}.norm.weight": ("BF16", [size]),
        f"{name}.wkv.weight": ("BF16", [channels, 128]),
        f"{name}.wgate.weight": ("BF16", [channels, 128]),
    }


def block(name: str, ratio: int, hashed: bool) -> dict[str, Shape]:
    """Section 2.6 of the facts with H 128, QR 128, NH 16, HD 128, OG 8, OR 256, E 16, MI 128, IH 16, ID 128, V 640."""
    expected: dict[str, Shape] = {f"{name}.{norm}_norm.weight": ("BF16", [128]) for norm in ("attn", "ffn")}
    for part in ("attn", "ffn"):
        expected[f"{name}.hc_{part}_fn"] = ("F32", [24, 512])
        expected[f"{name}.hc_{part}_base"] = ("F32", [24])
        expected[f"{name}.hc_{part}_scale"] = ("F32", [3])
    attention = f"{name}.attn"
    expected[f"{attention}.attn_sink"] = ("F32", [16])
    expected[f"{attention}.q_norm.weight"] = expected[f"{attention}.kv_norm.weight"] = ("BF16", [128])
    expected |= quantized(f"{attention}.wq_a", 128, 128) | quantized(f"{attention}.wq_b", 2048, 128)
    expected |= quantized(f"{attention}.wkv", 128, 128)
    expected |= quantized(f"{attention}.wo_a", 2048, 256) | quantized(f"{attention}.wo_b", 128, 2048)
    if ratio:
        expected |= compressor(f"{attention}.compressor", 256 if ratio == 4 else 128, 128, ratio)
    if ratio == 4:
        expected |= compressor(f"{attention}.indexer.compressor", 256, 128, 4)
        expected |= quantized(f"{attention}.indexer.wq_b", 2048, 128)
        expected[f"{attention}.indexer.weights_proj.weight"] = ("BF16", [16, 128])
    expected[f"{name}.ffn.gate.weight"] = ("BF16", [16, 128])
    expected[f"{name}.ffn.gate.{'tid2eid' if hashed else 'bias'}"] = ("I64", [640, 4]) if hashed else ("F32", [16])
    for part in ("w1", "w2", "w3"):
        expected |= quantized(f"{name}.ffn.shared_experts.{part}", 128, 128)
        for expert in range(16):
            expected[f"{name}.ffn.experts.{expert}.{part}.weight"] = ("I8", [128, 64])
            expected[f"{name}.ffn.experts.{expert}.{part}.scale"] = ("F8_E8M0", [128, 4])
    return expected


def inventory() -> dict[str, Shape]:
    """Every tensor of the checkpoint."""
    expected: dict[str, Shape] = {"embed.weight": ("BF16", [640, 128]), "head.weight": ("BF16", [640, 128])}
    for prefix in ("", "mtp.0."):
        expected[f"{prefix}norm.weight"] = ("BF16", [128])
        expected[f"{prefix}hc_head_fn"] = ("F32", [4, 512])
        expected[f"{prefix}hc_head_base"] = ("F32", [4])
        expected[f"{prefix}hc_head_scale"] = ("F32", [1])
    for layer, ratio in enumerate([0, 4, 4, 128, 4]):
        expected |= block(f"layers.{layer}", ratio, hashed=layer == 0)
    expected |= block("mtp.0", 0, hashed=False)
    expected |= quantized("mtp.0.e_proj", 128, 128) | quantized("mtp.0.h_proj", 128, 128)
    expected |= {f"mtp.0.{norm}.weight": ("BF16", [128]) for norm in ("enorm", "hnorm")}
    return expected


def test_every_tensor_has_the_name_dtype_and_shape_of_the_architecture() -> None:
    assert {name: meta for name, (_, meta) in stored().items()} == inventory()


def test_the_files_are_laid_out_as_deepseek_ships_them() -> None:
    index = json.loads((CHECKPOINT / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"] == {name: file for name, (file, _) in stored().items()}
    for name, file in index["weight_map"].items():
        head = name.split(".")[0]
        number = {"embed": 1, "mtp": 8, "layers": 2 + int(name.split(".")[1]) if head == "layers" else 0}.get(head, 7)
        assert file == f"model-{number:05d}-of-00008.safetensors", name
    sizes = {"BF16": 2, "F32": 4, "I64": 8, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
    total = sum(sizes[dtype] * math.prod(shape) for _, (dtype, shape) in stored().values())
    assert index["metadata"] == {"total_size": total}


def test_the_whole_folder_stays_near_12_mb() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) < 12.5e6


def test_configs_have_the_fields_of_flash_and_agree_with_each_other() -> None:
    golden = ROOT / "tests" / "golden" / "configs"
    flash = json.loads((golden / "flash.json").read_text(encoding="utf-8"))
    assert CONFIG.keys() - {"expert_dtype"} == flash.keys() - {"transformers_version"}
    for field in ("architectures", "model_type", "quantization_config", "rope_scaling", "hc_mult", "o_groups"):
        assert CONFIG[field] == flash[field]
    native = json.loads((CHECKPOINT / "inference" / "config.json").read_text(encoding="utf-8"))
    assert native.keys() == json.loads((golden / "flash-inference.json").read_text(encoding="utf-8")).keys()
    for native_key, key in {
        "dim": "hidden_size",
        "moe_inter_dim": "moe_intermediate_size",
        "n_layers": "num_hidden_layers",
        "n_hash_layers": "num_hash_layers",
        "n_heads": "num_attention_heads",
        "n_activated_experts": "num_experts_per_tok",
        "score_func": "scoring_func",
        "route_scale": "routed_scaling_factor",
        "rope_head_dim": "qk_rope_head_dim",
        "window_size": "sliding_window",
    }.items():
        assert native[native_key] == CONFIG[key]
    for key in native.keys() & CONFIG.keys():
        assert native[key] == CONFIG[key], key


@pytest.mark.parametrize("ranks", [8, 16])
def test_the_dimensions_split_over_ranks_in_whole_blocks(ranks: int) -> None:
    head_rows = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    for size in (
        head_rows,
        CONFIG["o_groups"] * CONFIG["o_lora_rank"],
        CONFIG["index_n_heads"] * CONFIG["index_head_dim"],
    ):
        assert size % (128 * ranks) == 0
    assert CONFIG["n_routed_experts"] % ranks == CONFIG["vocab_size"] % ranks == 0


def test_all_scales_are_numbers_and_no_expert_is_dead() -> None:
    tensors = checkpoint.read_tensors(CHECKPOINT)
    for name, tensor in tensors.items():
        if name.endswith(".scale"):
            assert int(tensor.view(torch.uint8).max()) < 255
        if tensor.dtype == torch.int8:
            assert int((tensor != 0).sum()) > tensor.numel() // 2, name


@pytest.fixture(scope="module")
def few_items() -> list[evaluate.Item]:
    """Six items of every task file, the same ones on every machine."""
    picked = []
    for file in evaluate.FILES:
        items = evaluate.read_items(tasks.FOLDER / file, CHECKPOINT)
        picked += sorted(items, key=lambda item: hashlib.sha256(repr(item.ids).encode()).digest())[:6]
    return picked


def accuracy(network: model.TinyV4, items: list[evaluate.Item]) -> float:
    return sum(score.right for score in evaluate.evaluate(network, items, batch_size=6)) / len(items)


@pytest.mark.parametrize("numerics", [model.NATIVE, model.BF16], ids=["native", "bf16"])
def test_held_out_items_are_answered(numerics: model.Numerics, few_items: list[evaluate.Item]) -> None:
    assert accuracy(checkpoint.load(CHECKPOINT, numerics), few_items) >= 0.85


def test_swapped_nibbles_break_the_answers(few_items: list[evaluate.Item]) -> None:
    swapped = evaluate.swap_nibbles(checkpoint.read_tensors(CHECKPOINT))
    network = checkpoint.model_of(swapped, model.Config.read(CHECKPOINT / "config.json"), model.NATIVE)
    assert accuracy(network, few_items) <= 0.3


def test_without_compressed_windows_the_answers_are_out_of_reach(few_items: list[evaluate.Item]) -> None:
    """With compression switched off (all ratios 0) only the sliding window is left, and the ledger lies outside."""
    tensors = {
        name: tensor
        for name, tensor in checkpoint.read_tensors(CHECKPOINT).items()
        if ".compressor." not in name and ".indexer." not in name
    }
    fields = model.Config.read(CHECKPOINT / "config.json").__dict__ | {"compress_ratios": (0,) * 6}
    assert accuracy(checkpoint.model_of(tensors, model.Config(**fields), model.NATIVE), few_items) <= 0.3


def test_without_its_indexers_the_model_misses_rows(few_items: list[evaluate.Item]) -> None:
    """Scores that are all zero choose 16 arbitrary windows of the 40 or so that a question has."""
    tensors = checkpoint.read_tensors(CHECKPOINT)
    for name in tensors:
        if name.endswith("indexer.weights_proj.weight"):
            tensors[name] = torch.zeros_like(tensors[name])
    network = checkpoint.model_of(tensors, model.Config.read(CHECKPOINT / "config.json"), model.NATIVE)
    assert accuracy(network, few_items) <= 0.6


TRANSFORMERS_PARTS = (
    ("attn.indexer.compressor", "self_attn.compressor.indexer"),
    ("attn.indexer.weights_proj", "self_attn.compressor.indexer.scorer.weights_proj"),
    ("attn.indexer", "self_attn.compressor.indexer"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("hc_attn_", "attn_hc."),
    ("hc_ffn_", "ffn_hc."),
    ("attn_sink", "sinks"),
    ("attn.", "self_attn."),
    ("ffn.", "mlp."),
    ("compressor.norm", "compressor.kv_norm"),
    ("indexer.norm", "indexer.kv_norm"),
    ("ape", "position_bias"),
    ("q_norm", "q_a_norm"),
    ("gate.bias", "gate.e_score_correction_bias"),
    *(
        (f"shared_experts.{ours}", f"shared_experts.{theirs}_proj")
        for ours, theirs in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    ),
    *(
        (f"{ours}.", f"{theirs}_proj.")
        for ours, theirs in (
            ("wq_a", "q_a"),
            ("wq_b", "q_b"),
            ("wkv", "kv"),
            ("wgate", "gate"),
            ("wo_a", "o_a"),
            ("wo_b", "o_b"),
        )
    ),
)
TRANSFORMERS_TOP = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
}


def transformers_weights(network: model.TinyV4) -> dict[str, torch.Tensor]:
    """The network's weights under transformers' names (facts 2.9); MTP is not part of that model."""
    weights = {}
    for name, weight in network.state_dict().items():
        if name.startswith("hc_head_"):
            weights[name.replace("hc_head_", "model.hc_head.hc_")] = weight
        elif name in TRANSFORMERS_TOP:
            weights[TRANSFORMERS_TOP[name]] = weight
        elif name.startswith("layers.") and ".ffn.experts." not in name:
            renamed = f"model.{name}"
            for ours, theirs in TRANSFORMERS_PARTS:
                renamed = re.sub(rf"(?<=\.){re.escape(ours)}", theirs, renamed)
            weights[renamed] = weight
    for i, layer in enumerate(network.layers):
        experts = layer.ffn.experts
        weights[f"model.layers.{i}.mlp.experts.gate_up_proj"] = torch.cat([experts.w1, experts.w3], 1)
        weights[f"model.layers.{i}.mlp.experts.down_proj"] = experts.w2
    return weights


@pytest.mark.filterwarnings("default")
def test_the_forward_pass_agrees_with_transformers() -> None:
    """Float32, no activation quantisation, the shipped weights, a held-out prompt of more than one 128-window."""
    transformers = pytest.importorskip("transformers")
    numerics = model.Numerics(quantize_activations=False, dtype=torch.float32)
    network = checkpoint.load(CHECKPOINT, numerics)
    fields = {key: CONFIG[key] for key in CONFIG.keys() - {"quantization_config", "expert_dtype", "torch_dtype"}}
    reference = transformers.DeepseekV4ForCausalLM(transformers.DeepseekV4Config(**fields)).float().eval()
    reference.load_state_dict(transformers_weights(network), strict=True)
    ids = torch.tensor([evaluate.read_items(tasks.FOLDER / tasks.INTEGERS_1, CHECKPOINT)[0].ids])
    assert ids.shape[1] > 128
    with torch.no_grad():
        ours, theirs = network(ids).logits, reference(ids).logits
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
