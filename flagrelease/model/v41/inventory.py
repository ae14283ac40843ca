"""The tensors that a DeepSeek-V4.1 checkpoint holds, computed from its config: names, shapes, storage, sharding.

Sharding follows DeepSeek's `inference/convert.py` of V4.1: Engram tables are cut by rows and padded, draft stages have
an expert count of their own, everything of vision is on every rank.

Symbols in shapes: H hidden, QR q_lora_rank, NH heads, HD head_dim, OG o_groups, OR o_lora_rank, E experts,
MI expert width, V vocabulary, IH indexer heads, ID indexer head_dim, M hc_mult.
"""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.model.tensors import Split, Storage, TensorSpec
from flagrelease.model.v41.config import V41Config


def inventory(config: V41Config) -> dict[str, TensorSpec]:
    """Every tensor that a checkpoint of this config holds, by name; scales not listed."""
    return {spec.name: spec for spec in _all(config)}


def _all(config: V41Config) -> Iterator[TensorSpec]:
    V, H = config.vocab_size, config.hidden_size
    yield TensorSpec("embed.weight", (V, H), Storage.BF16, Split.ROWS)
    yield TensorSpec("head.weight", (V, H), Storage.BF16, Split.ROWS)
    yield TensorSpec("norm.weight", (H,), Storage.BF16)
    yield from _vision(config)
    for layer in range(config.num_hidden_layers):
        at = f"layers.{layer}"
        yield from _block(at, config, config.n_routed_experts)
        yield from _compressed(f"{at}.attn", config, layer)
        if layer in config.engram_layer_ids:
            rows = config.engram_num_embeddings[config.engram_layer_ids.index(layer)]
            yield from _engram(f"{at}.engram", config, rows)
    for stage in range(config.n_mtp_layers):
        yield from _block(f"mtp.{stage}", config, config.draft_experts)
        yield from _stage(stage, config)


def _block(at: str, config: V41Config, experts: int) -> Iterator[TensorSpec]:
    H, M = config.hidden_size, config.hc_mult
    mixes = (2 + M) * M
    for sub in ("attn", "ffn"):
        yield TensorSpec(f"{at}.hc_{sub}_fn", (mixes, M * H), Storage.F32)
        yield TensorSpec(f"{at}.hc_{sub}_base", (mixes,), Storage.F32)
        yield TensorSpec(f"{at}.hc_{sub}_scale", (3,), Storage.F32)
        yield TensorSpec(f"{at}.{sub}_norm.weight", (H,), Storage.BF16)
    yield from _attention(f"{at}.attn", config)
    yield from _moe(f"{at}.ffn", config, experts)


def _attention(at: str, config: V41Config) -> Iterator[TensorSpec]:
    H, QR, NH, HD = config.hidden_size, config.q_lora_rank, config.num_attention_heads, config.head_dim
    OG, OR = config.o_groups, config.o_lora_rank
    yield TensorSpec(f"{at}.attn_sink", (NH,), Storage.F32, Split.ROWS)
    yield TensorSpec(f"{at}.wq_a.weight", (QR, H), Storage.LINEAR)
    yield TensorSpec(f"{at}.q_norm.weight", (QR,), Storage.BF16)
    yield TensorSpec(f"{at}.wq_b.weight", (NH * HD, QR), Storage.LINEAR, Split.ROWS)
    yield TensorSpec(f"{at}.wkv.weight", (HD, H), Storage.LINEAR)
    yield TensorSpec(f"{at}.kv_norm.weight", (HD,), Storage.BF16)
    yield TensorSpec(f"{at}.wo_a.weight", (OG * OR, NH * HD // OG), Storage.LINEAR, Split.O_GROUP_ROWS)
    yield TensorSpec(f"{at}.wo_b.weight", (H, OG * OR), Storage.LINEAR, Split.O_GROUP_COLUMNS)


def _compressed(at: str, config: V41Config, layer: int) -> Iterator[TensorSpec]:
    """What a layer has that makes compressed keys or an index; other layers share those of the last such layer."""
    H, HD, IH, ID = config.hidden_size, config.head_dim, config.index_n_heads, config.index_head_dim
    if layer in config.kv_source_layer_ids:
        yield TensorSpec(f"{at}.compressor.wkv.weight", (HD, H), Storage.BF16)
        if config.compress_ratios[layer] > 1:  # one token needs no weighing against others
            yield TensorSpec(f"{at}.compressor.wgate.weight", (HD, H), Storage.BF16)
        yield TensorSpec(f"{at}.compressor.norm.weight", (HD,), Storage.BF16)
        yield TensorSpec(f"{at}.indexer.wk.weight", (ID, HD), Storage.BF16)
        yield TensorSpec(f"{at}.indexer.k_norm.weight", (ID,), Storage.BF16)
    if layer in config.index_source_layer_ids:
        yield TensorSpec(f"{at}.indexer.wq_b.weight", (IH * ID, config.q_lora_rank), Storage.LINEAR, Split.ROWS)
        yield TensorSpec(f"{at}.indexer.weights_proj.weight", (IH, H), Storage.BF16, Split.ROWS)


def _moe(at: str, config: V41Config, experts: int) -> Iterator[TensorSpec]:
    H, MI = config.hidden_size, config.moe_intermediate_size
    yield TensorSpec(f"{at}.gate.weight", (experts, H), Storage.BF16)
    yield TensorSpec(f"{at}.gate.bias", (experts,), Storage.F32)
    yield TensorSpec(f"{at}.gate.bias_vl", (experts,), Storage.F32)
    for name, shape in (("w1", (MI, H)), ("w2", (H, MI)), ("w3", (MI, H))):
        yield TensorSpec(f"{at}.shared_experts.{name}.weight", shape, Storage.LINEAR)
        for e in range(experts):
            yield TensorSpec(f"{at}.experts.{e}.{name}.weight", shape, Storage.EXPERT, Split.EXPERT, e, experts)


def _engram(at: str, config: V41Config, rows: int) -> Iterator[TensorSpec]:
    H, M = config.hidden_size, config.hc_mult
    yield TensorSpec(f"{at}.embed.weight", (rows, config.engram_head_dim), Storage.TABLE, Split.PADDED_ROWS)
    yield TensorSpec(f"{at}.wkv.weight", ((M + 1) * H, config.engram_width), Storage.LINEAR)
    yield TensorSpec(f"{at}.q_weight", (M, H), Storage.BF16)
    yield TensorSpec(f"{at}.k_weight", (M, H), Storage.BF16)


def _stage(stage: int, config: V41Config) -> Iterator[TensorSpec]:
    H, V, at = config.hidden_size, config.vocab_size, f"mtp.{stage}"
    rank = config.dspark_markov_rank or 0
    if stage == 0:
        yield TensorSpec(f"{at}.main_proj.weight", (H, config.n_mtp_layers * H), Storage.LINEAR)
        yield TensorSpec(f"{at}.main_norm.weight", (H,), Storage.BF16)
    if stage == config.n_mtp_layers - 1:
        yield TensorSpec(f"{at}.norm.weight", (H,), Storage.BF16)
        yield TensorSpec(f"{at}.markov_head.embed.weight", (V, rank), Storage.BF16, Split.ROWS)
        yield TensorSpec(f"{at}.markov_head.head.weight", (V, rank), Storage.BF16, Split.ROWS)
        yield TensorSpec(f"{at}.confidence_head.proj.weight", (1, H + rank), Storage.BF16)


def _vision(config: V41Config) -> Iterator[TensorSpec]:
    vision, H = config.vision_config, config.hidden_size
    D, I = vision.hidden_size, vision.intermediate_size  # noqa: E741
    unfolded = vision.downsample_ratio**2 * D
    shapes = {
        "vision.patch_embed.proj.weight": (D, 3 * vision.patch_size**2),
        "vision.patch_embed.proj.bias": (D,),
        "vision.norm.weight": (D,),
        "aligner.w1.weight": (H, unfolded),
        "aligner.w1.bias": (H,),
        "aligner.w2.weight": (H, H),
        "aligner.w2.bias": (H,),
        "image_start": (H,),
        "image_end": (H,),
        "image_newline": (H,),
    }
    for block in range(vision.num_hidden_layers):
        shapes |= {
            f"vision.blocks.{block}.{name}": shape
            for name, shape in (
                ("attn.wqkv.weight", (3 * D, D)), ("attn.wqkv.bias", (3 * D,)), ("attn.wo.weight", (D, D)),
                ("attn.wo.bias", (D,)), ("mlp.w1.weight", (2 * I, D)), ("mlp.w2.weight", (D, I)),
                ("norm1.weight", (D,)), ("norm2.weight", (D,)),
            )
        }  # fmt: skip
    yield from (TensorSpec(name, shape, Storage.BF16) for name, shape in shapes.items())
