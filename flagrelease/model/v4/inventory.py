"""The tensors a DeepSeek-V4 checkpoint holds, computed from its config: names, logical shapes, storage, sharding.

This is the one table of the model's names. The converter requires that a source holds exactly these tensors, the
engine that a release does.

Symbols in shapes: H hidden, QR q_lora_rank, NH heads, HD head_dim, OG o_groups, OR o_lora_rank, E experts,
MI expert width, V vocabulary, IH indexer heads, ID indexer head_dim, M hc_mult.
"""

from __future__ import annotations

from collections.abc import Iterator

from flagrelease.model.tensors import Split, Storage, TensorSpec
from flagrelease.model.v4.config import ModelConfig


def inventory(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor that a checkpoint of this config holds, by name; scales not listed."""
    return {spec.name: spec for spec in _all(config)}


def _all(config: ModelConfig) -> Iterator[TensorSpec]:
    V, H = config.vocab_size, config.hidden_size
    yield TensorSpec("embed.weight", (V, H), Storage.BF16, Split.ROWS)
    yield TensorSpec("head.weight", (V, H), Storage.BF16, Split.ROWS)
    yield TensorSpec("norm.weight", (H,), Storage.BF16)
    yield from _hc_head("", config)
    for layer in range(config.num_hidden_layers):
        yield from _block(f"layers.{layer}", config, config.compress_ratios[layer], layer < config.num_hash_layers)
    for stage in range(config.n_mtp_layers):
        yield from _block(
            f"mtp.{stage}", config, config.compress_ratios[config.num_hidden_layers + stage], hashed=False
        )
        yield from _dspark_stage(stage, config) if config.is_dspark else _mtp_stage(stage, config)


def _block(at: str, config: ModelConfig, ratio: int, hashed: bool) -> Iterator[TensorSpec]:
    H, M = config.hidden_size, config.hc_mult
    mixes = (2 + M) * M
    for sub in ("attn", "ffn"):
        yield TensorSpec(f"{at}.hc_{sub}_fn", (mixes, M * H), Storage.F32)
        yield TensorSpec(f"{at}.hc_{sub}_base", (mixes,), Storage.F32)
        yield TensorSpec(f"{at}.hc_{sub}_scale", (3,), Storage.F32)
        yield TensorSpec(f"{at}.{sub}_norm.weight", (H,), Storage.BF16)
    yield from _attention(f"{at}.attn", config, ratio)
    yield from _moe(f"{at}.ffn", config, hashed)


def _attention(at: str, config: ModelConfig, ratio: int) -> Iterator[TensorSpec]:
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
    if ratio:
        yield from _compressor(f"{at}.compressor", config, ratio, HD)
    if ratio == 4:
        IH, ID = config.index_n_heads, config.index_head_dim
        yield TensorSpec(f"{at}.indexer.wq_b.weight", (IH * ID, QR), Storage.LINEAR, Split.ROWS)
        yield TensorSpec(f"{at}.indexer.weights_proj.weight", (IH, H), Storage.BF16, Split.ROWS)
        yield from _compressor(f"{at}.indexer.compressor", config, ratio, ID)


def _compressor(at: str, config: ModelConfig, ratio: int, width: int) -> Iterator[TensorSpec]:
    channels = width * (2 if ratio == 4 else 1)  # ratio 4 overlaps two windows, so it has two sets of channels
    yield TensorSpec(f"{at}.ape", (ratio, channels), Storage.F32)
    yield TensorSpec(f"{at}.wkv.weight", (channels, config.hidden_size), Storage.BF16)
    yield TensorSpec(f"{at}.wgate.weight", (channels, config.hidden_size), Storage.BF16)
    yield TensorSpec(f"{at}.norm.weight", (width,), Storage.BF16)


def _moe(at: str, config: ModelConfig, hashed: bool) -> Iterator[TensorSpec]:
    H, E, MI = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    yield TensorSpec(f"{at}.gate.weight", (E, H), Storage.BF16)
    if hashed:
        yield TensorSpec(f"{at}.gate.tid2eid", (config.vocab_size, config.num_experts_per_tok), Storage.I64)
    else:
        yield TensorSpec(f"{at}.gate.bias", (E,), Storage.F32)
    for name, shape in (("w1", (MI, H)), ("w2", (H, MI)), ("w3", (MI, H))):
        yield TensorSpec(f"{at}.shared_experts.{name}.weight", shape, Storage.LINEAR)
        for e in range(E):
            yield TensorSpec(f"{at}.experts.{e}.{name}.weight", shape, Storage.EXPERT, Split.EXPERT, e, E)


def _mtp_stage(stage: int, config: ModelConfig) -> Iterator[TensorSpec]:
    H, at = config.hidden_size, f"mtp.{stage}"
    yield TensorSpec(f"{at}.e_proj.weight", (H, H), Storage.LINEAR)
    yield TensorSpec(f"{at}.h_proj.weight", (H, H), Storage.LINEAR)
    for norm in ("enorm", "hnorm", "norm"):
        yield TensorSpec(f"{at}.{norm}.weight", (H,), Storage.BF16)
    yield from _hc_head(f"{at}.", config)


def _dspark_stage(stage: int, config: ModelConfig) -> Iterator[TensorSpec]:
    H, V, at = config.hidden_size, config.vocab_size, f"mtp.{stage}"
    rank = config.dspark_markov_rank or 0
    if stage == 0:
        targets = len(config.dspark_target_layer_ids or ())
        yield TensorSpec(f"{at}.main_proj.weight", (H, targets * H), Storage.LINEAR)
        yield TensorSpec(f"{at}.main_norm.weight", (H,), Storage.BF16)
    if stage == config.n_mtp_layers - 1:
        yield TensorSpec(f"{at}.norm.weight", (H,), Storage.BF16)
        yield from _hc_head(f"{at}.", config)
        yield TensorSpec(f"{at}.confidence_head.proj.weight", (1, H + rank), Storage.BF16)
        yield TensorSpec(f"{at}.markov_head.markov_w1.weight", (V, rank), Storage.BF16, Split.ROWS)
        yield TensorSpec(f"{at}.markov_head.markov_w2.weight", (V, rank), Storage.BF16, Split.ROWS)


def _hc_head(prefix: str, config: ModelConfig) -> Iterator[TensorSpec]:
    M, H = config.hc_mult, config.hidden_size
    yield TensorSpec(f"{prefix}hc_head_fn", (M, M * H), Storage.F32)
    yield TensorSpec(f"{prefix}hc_head_base", (M,), Storage.F32)
    yield TensorSpec(f"{prefix}hc_head_scale", (1,), Storage.F32)
