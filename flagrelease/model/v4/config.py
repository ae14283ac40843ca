"""`ModelConfig`: the numbers of a DeepSeek-V4 model, read strictly from a Hugging Face `config.json`."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from flagrelease.errors import CheckpointError, first_problem
from flagrelease.model.config import DSPARK, FamilyConfig, read_document

# Hugging Face key -> key of DeepSeek's inference/config.json (its dataclass ModelArgs), where the names differ.
_NATIVE_NAMES = {
    "hidden_size": "dim",
    "moe_intermediate_size": "moe_inter_dim",
    "num_hidden_layers": "n_layers",
    "num_hash_layers": "n_hash_layers",
    "num_attention_heads": "n_heads",
    "num_experts_per_tok": "n_activated_experts",
    "scoring_func": "score_func",
    "routed_scaling_factor": "route_scale",
    "qk_rope_head_dim": "rope_head_dim",
    "sliding_window": "window_size",
}
_NATIVE_SAME = (
    "vocab_size", "n_routed_experts", "n_shared_experts", "swiglu_limit", "q_lora_rank", "head_dim", "o_groups",
    "o_lora_rank", "rope_theta", "index_n_heads", "index_head_dim", "index_topk", "hc_mult", "hc_sinkhorn_iters",
    "compress_rope_theta",
)  # fmt: skip


class ModelConfig(FamilyConfig):
    """The part of `config.json` that decides tensors, sharding and mathematics."""

    model_type: Literal["deepseek_v4"]
    num_hash_layers: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.n_shared_experts != 1:
            raise ValueError(f"n_shared_experts is {self.n_shared_experts}; DeepSeek-V4 stores exactly one")
        if self.num_attention_heads % self.o_groups:
            raise ValueError(f"o_groups {self.o_groups} does not divide num_attention_heads {self.num_attention_heads}")
        layers = self.num_hidden_layers + self.n_mtp_layers
        if len(self.compress_ratios) != layers:
            raise ValueError(
                f"compress_ratios has {len(self.compress_ratios)} entries; {self.num_hidden_layers} layers and "
                f"{self.n_mtp_layers} MTP stages need {layers}"
            )
        unknown = sorted(set(self.compress_ratios) - {0, 4, 128})
        if unknown:
            raise ValueError(f"compress_ratios holds {unknown}; DeepSeek-V4 has 0, 4 and 128")
        dspark = [getattr(self, name) is None for name in DSPARK]
        if any(dspark) != all(dspark):
            raise ValueError(f"a DSpark release has all of {', '.join(DSPARK)}, an ordinary one none")
        return self

    @property
    def most_drafts(self) -> int:
        """Tokens that the draft stages guess at once, as far as the engine runs them: 0 if it does not.

        DSpark's stages guess a block. Of the preview's MTP stages the engine runs a single one, which guesses a token.
        """
        if self.dspark_block_size is not None:
            return self.dspark_block_size
        return 1 if self.num_nextn_predict_layers == 1 else 0


def read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read `config.json` of a DeepSeek-V4 model; return the checked part and the whole document.

    Whoever converts or proves models of any family asks `flagrelease.model.families` instead.

    Raises:
        CheckpointError: no such file, not JSON, not DeepSeek-V4, or a key missing or of a wrong type.
    """
    raw = read_document(path)
    return parse_config(raw, path), raw


def parse_config(raw: dict[str, Any], origin: PurePath | str) -> ModelConfig:
    """Check a `config.json` document. `origin` names it in errors."""
    if raw.get("model_type") != "deepseek_v4":
        raise CheckpointError(f"{origin}: model_type is {raw.get('model_type')!r}; 'deepseek_v4' is expected here")
    try:
        return ModelConfig.model_validate(raw)
    except ValidationError as error:
        saved = "num_hash_layers" not in raw and "transformers_version" in raw
        hint = (
            "; it was written by save_pretrained of transformers, which leaves out keys and renames tensors: convert "
            "the checkpoint as DeepSeek published it"
        )
        raise CheckpointError(f"{origin}: {first_problem(error, 'config')}{hint if saved else ''}") from error


def native_arguments(config: ModelConfig) -> dict[str, Any]:
    """The model part of DeepSeek's `inference/config.json`: the keys of its ModelArgs that the config decides.

    The numeric keys (dtype, scale_fmt, expert_dtype) depend on the release and are added by the converter. An unknown
    key is a TypeError in DeepSeek's code, so nothing else may be added.
    """
    values = config.model_dump()
    native = {_NATIVE_NAMES.get(key, key): values[key] for key in (*_NATIVE_NAMES, *_NATIVE_SAME)}
    native["original_seq_len"] = config.rope_scaling.original_max_position_embeddings
    native["rope_factor"] = config.rope_scaling.factor
    native["beta_fast"] = config.rope_scaling.beta_fast
    native["beta_slow"] = config.rope_scaling.beta_slow
    native["compress_ratios"] = list(config.compress_ratios)
    if config.n_mtp_layers != 1:
        native["n_mtp_layers"] = config.n_mtp_layers
    for key in DSPARK:
        if values[key] is not None:
            native[key] = list(values[key]) if isinstance(values[key], tuple) else values[key]
    for key in ("rope_theta", "compress_rope_theta", "rope_factor", "beta_fast", "beta_slow"):
        if native[key].is_integer():  # DeepSeek writes 10000, not 10000.0
            native[key] = int(native[key])
    return native
