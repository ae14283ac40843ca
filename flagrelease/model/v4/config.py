"""`ModelConfig`: the numbers of a DeepSeek-V4 model, read strictly from a Hugging Face `config.json`.

DeepSeek's own inference code has defaults that differ from the real model, so a missing key silently gives a wrong
model there. Here a missing key is refused, except the few that were absent from the first upload (`expert_dtype`) or
belong only to DSpark releases.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from flagrelease.errors import CheckpointError, first_problem
from flagrelease.shard.impostors import impostor
from flagrelease.strict_json import parse_json

ExpertDtype = Literal["fp4", "fp8"]
Positive = Annotated[int, Field(gt=0)]
# JSON has lists only
Integers = Annotated[tuple[int, ...], Strict(False)]

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
_DSPARK = ("dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids", "dspark_markov_rank")


class RopeScaling(BaseModel):
    """YaRN parameters (used by layers with compressed attention only)."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


class QuantizationConfig(BaseModel):
    """How the FP8 weights are scaled. V4.1 puts `expert_dtype` in here."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    quant_method: Literal["fp8"]
    weight_block_size: Annotated[tuple[Positive, Positive], Strict(False)]
    scale_fmt: str | None = None
    expert_dtype: ExpertDtype | None = None


class CompressedTensorsConfig(BaseModel):
    """A release in compressed-tensors' form (INT8 or FP8 with a scale for each row), as vLLM and SGLang load it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    quant_method: Literal["compressed-tensors"]
    format: Literal["int-quantized", "float-quantized"]


class ModelConfig(BaseModel):
    """The part of `config.json` that decides tensors, sharding and mathematics. Extra keys are carried, not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    model_type: Literal["deepseek_v4"]
    vocab_size: Positive
    hidden_size: Positive
    num_hidden_layers: Positive
    num_hash_layers: int = Field(ge=0)
    num_nextn_predict_layers: int = Field(ge=0)
    num_attention_heads: Positive
    head_dim: Positive
    qk_rope_head_dim: Positive
    q_lora_rank: Positive
    o_lora_rank: Positive
    o_groups: Positive
    moe_intermediate_size: Positive
    n_routed_experts: Positive
    n_shared_experts: int = Field(ge=0)
    num_experts_per_tok: Positive
    routed_scaling_factor: float
    scoring_func: Literal["sqrtsoftplus"]
    swiglu_limit: float
    index_n_heads: Positive
    index_head_dim: Positive
    index_topk: Positive
    hc_mult: Positive
    hc_sinkhorn_iters: Positive
    hc_eps: float
    rms_norm_eps: float
    sliding_window: Positive
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: RopeScaling
    compress_ratios: Integers
    max_position_embeddings: Positive
    bos_token_id: int
    eos_token_id: int
    expert_dtype: ExpertDtype | None = None
    quantization_config: Annotated[
        QuantizationConfig | CompressedTensorsConfig | None, Field(discriminator="quant_method")
    ] = None
    dspark_block_size: int | None = None
    dspark_noise_token_id: int | None = None
    dspark_target_layer_ids: Integers | None = None
    dspark_markov_rank: int | None = None

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
        dspark = [getattr(self, name) is None for name in _DSPARK]
        if any(dspark) != all(dspark):
            raise ValueError(f"a DSpark release has all of {', '.join(_DSPARK)}, an ordinary one none")
        return self

    @property
    def is_dspark(self) -> bool:
        """Whether the MTP stages are DSpark's (0731 releases), which store other tensors than the preview's."""
        return self.dspark_block_size is not None

    @property
    def most_drafts(self) -> int:
        """Tokens that the draft stages guess at once, as far as the engine runs them: 0 if it does not.

        DSpark's stages guess a block. Of the preview's MTP stages the engine runs a single one, which guesses a token.
        """
        if self.dspark_block_size is not None:
            return self.dspark_block_size
        return 1 if self.num_nextn_predict_layers == 1 else 0

    @property
    def n_mtp_layers(self) -> int:
        """MTP stages stored. DSpark configs say `num_nextn_predict_layers: 1` but store one stage a target layer."""
        if self.dspark_target_layer_ids is not None:
            return len(self.dspark_target_layer_ids)
        return self.num_nextn_predict_layers

    @property
    def block_size(self) -> tuple[int, int] | None:
        """(rows, columns) that share one FP8 scale, or None for a checkpoint whose config names no blocks."""
        return None if self.block_quantisation is None else self.block_quantisation.weight_block_size

    @property
    def block_quantisation(self) -> QuantizationConfig | None:
        """`quantization_config` of a checkpoint as DeepSeek publishes it, with FP8 in blocks; None for others."""
        return self.quantization_config if isinstance(self.quantization_config, QuantizationConfig) else None

    @property
    def declared_expert_dtype(self) -> ExpertDtype | None:
        """`expert_dtype` from where the release has it: top level, or in `quantization_config` (V4.1)."""
        inside = None if self.block_quantisation is None else self.block_quantisation.expert_dtype
        return self.expert_dtype or inside


def read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read `config.json`; return the checked part and the whole document (which the rewriter needs).

    Raises:
        CheckpointError: no such file, not JSON, not DeepSeek-V4, or a key missing or of a wrong type.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; a checkpoint folder needs its config.json") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return read_config_bytes(content, path)


def read_config_bytes(content: bytes, path: PurePath) -> tuple[ModelConfig, dict[str, Any]]:
    """`read_config` of bytes that were read from `path`."""
    try:
        raw = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: {impostor(content, path) or f'not valid JSON ({error})'}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(raw).__name__}")
    return parse_config(raw, path), raw


def parse_config(raw: dict[str, Any], origin: PurePath | str) -> ModelConfig:
    """Check a `config.json` document. `origin` names it in errors."""
    if raw.get("model_type") != "deepseek_v4":
        raise CheckpointError(f"{origin}: model_type is {raw.get('model_type')!r}; this tool converts 'deepseek_v4'")
    try:
        return ModelConfig.model_validate(raw)
    except ValidationError as error:
        saved = "num_hash_layers" not in raw and "transformers_version" in raw
        hint = (
            "; it was written by save_pretrained of transformers, which leaves out keys and renames tensors: convert "
            "the checkpoint as DeepSeek published it"
        )
        raise CheckpointError(f"{origin}: {first_problem(error, 'config')}{hint if saved else ''}") from error


def has_mtp_stage(config: ModelConfig) -> bool:
    """Whether the checkpoint holds the preview's MTP stages, which share embedding and head with the model."""
    return config.n_mtp_layers > 0 and not config.is_dspark


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
    for key in _DSPARK:
        if values[key] is not None:
            native[key] = list(values[key]) if isinstance(values[key], tuple) else values[key]
    for key in ("rope_theta", "compress_rope_theta", "rope_factor", "beta_fast", "beta_slow"):
        if native[key].is_integer():  # DeepSeek writes 10000, not 10000.0
            native[key] = int(native[key])
    return native
