"""`FamilyConfig`: the numbers that `config.json` of every family has, and how the file is read.

DeepSeek's own inference code has defaults that differ from the real models, so a missing key silently gives a wrong
model there. Here a missing key is refused, except the few that were absent from the first upload (`expert_dtype`) or
belong only to DSpark releases.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from flagrelease.errors import CheckpointError
from flagrelease.shard.impostors import impostor
from flagrelease.strict_json import parse_json

ExpertDtype = Literal["fp4", "fp8"]
Positive = Annotated[int, Field(gt=0)]
# JSON has lists only
Integers = Annotated[tuple[int, ...], Strict(False)]
DSPARK = ("dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids", "dspark_markov_rank")


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


class FamilyConfig(BaseModel):
    """What the config of every family says, and what conversion and proof ask of it. Extra keys are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    model_type: str
    vocab_size: Positive
    hidden_size: Positive
    num_hidden_layers: Positive
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

    @property
    def is_dspark(self) -> bool:
        """Whether the MTP stages are DSpark's (0731 releases), which store other tensors than the preview's."""
        return self.dspark_block_size is not None

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

    @property
    def has_mtp_stage(self) -> bool:
        """Whether the checkpoint holds the preview's MTP stages, which share embedding and head with the model."""
        return self.n_mtp_layers > 0 and not self.is_dspark

    @property
    def most_ranks(self) -> int:
        """Ranks that inference code of this family can have at most."""
        return self.num_attention_heads

    @property
    def activation_group(self) -> int:
        """Columns of a linear's input that share a scale where DeepSeek's code rounds it to FP8."""
        return 128

    @property
    def key_groups(self) -> dict[str, tuple[int, int]]:
        """Columns of a cached key that DeepSeek's code rounds to FP8, in words: their count and that of a group."""
        return {"head_dim - qk_rope_head_dim": (self.head_dim - self.qk_rope_head_dim, 64)}

    @property
    def most_drafts(self) -> int:
        """Tokens that the draft stages guess at once, as far as the bundled engine runs them: 0 if it does not."""
        return 0

    @property
    def expert_counts(self) -> dict[str, int]:
        """Key of config.json -> how many experts a block has, for each kind of block."""
        return {"n_routed_experts": self.n_routed_experts}


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Raises:
        CheckpointError: no such file, or not a JSON object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; a checkpoint folder needs its config.json") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return document_of(content, path)


def document_of(content: bytes, path: PurePath) -> dict[str, Any]:
    """The JSON object in bytes that were read from `path`.

    Raises:
        CheckpointError: they are not a JSON object.
    """
    try:
        raw = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: {impostor(content, path) or f'not valid JSON ({error})'}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(raw).__name__}")
    return raw
