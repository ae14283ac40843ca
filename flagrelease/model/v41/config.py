"""`V41Config`: the numbers of a DeepSeek-V4.1 model, read strictly from its nested `config.json`.

The file has a part for text and one for vision; what says how weights are stored stands beside them, at the top.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flagrelease.errors import CheckpointError, first_problem
from flagrelease.model.config import DSPARK, FamilyConfig, Integers, Positive

TEXT, VISION = "text_config", "vision_config"


class VisionConfig(BaseModel):
    """The tower that turns patches of images into rows of embeddings."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    num_hidden_layers: Positive
    hidden_size: Positive
    num_attention_heads: Positive
    intermediate_size: Positive
    patch_size: Positive
    downsample_ratio: Positive
    rope_theta: float
    max_image_tokens: Positive
    min_pixels: Positive
    max_wh_ratio: float | None = None


class V41Config(FamilyConfig):
    """The part of `config.json` that decides tensors, sharding and mathematics."""

    model_type: Literal["deepseek_v41"]
    image_token_id: int
    kv_source_layer_ids: Integers
    index_source_layer_ids: Integers
    candidate_source_layer_id: int
    candidate_topk_blocks: Positive
    candidate_block_size: Positive
    engram_layer_ids: Integers
    engram_num_embeddings: Integers
    engram_vocab_size: Positive
    engram_max_ngram_size: int = Field(ge=2)
    engram_n_heads: Positive
    engram_head_dim: Positive
    engram_pad_token_id: int
    engram_compressed_vocab_size: Positive
    dspark_n_routed_experts: Positive | None = None
    dspark_num_experts_per_tok: Positive | None = None
    vision_config: VisionConfig

    @model_validator(mode="after")
    def _consistent(self) -> V41Config:
        if self.n_shared_experts != 1:
            raise ValueError(f"n_shared_experts is {self.n_shared_experts}; DeepSeek-V4.1 stores exactly one")
        if self.num_attention_heads % self.o_groups:
            raise ValueError(f"o_groups {self.o_groups} does not divide num_attention_heads {self.num_attention_heads}")
        self._check_layers()
        drafts = (*DSPARK, "dspark_n_routed_experts", "dspark_num_experts_per_tok")
        missing = [name for name in drafts if getattr(self, name) is None]
        if missing and (self.num_nextn_predict_layers or len(missing) < len(drafts)):
            raise ValueError(f"{', '.join(missing)}: missing, yet the model has draft stages")
        if self.num_nextn_predict_layers != self.n_mtp_layers:
            raise ValueError(
                f"num_nextn_predict_layers is {self.num_nextn_predict_layers}; dspark_target_layer_ids name "
                f"{self.n_mtp_layers} stages"
            )
        inside = None if self.block_quantisation is None else self.block_quantisation.expert_dtype
        if self.expert_dtype and inside and self.expert_dtype != inside:
            raise ValueError(f"expert_dtype is {self.expert_dtype}, and {inside} in quantization_config")
        return self

    def _check_layers(self) -> None:
        layers = self.num_hidden_layers + self.n_mtp_layers
        if len(self.compress_ratios) != layers:
            raise ValueError(
                f"compress_ratios has {len(self.compress_ratios)} entries; {self.num_hidden_layers} layers and "
                f"{self.n_mtp_layers} draft stages need {layers}"
            )
        if unknown := sorted(set(self.compress_ratios) - {0, 1, 2}):
            raise ValueError(f"compress_ratios holds {unknown}; DeepSeek-V4.1 has 0, 1 and 2")
        sources = (self.kv_source_layer_ids, self.index_source_layer_ids, self.engram_layer_ids)
        for name, ids in zip(
            ("kv_source_layer_ids", "index_source_layer_ids", "engram_layer_ids"), sources, strict=True
        ):
            if list(ids) != sorted({one for one in ids if 0 <= one < self.num_hidden_layers}):
                raise ValueError(f"{name} is {list(ids)}; layers from 0 to {self.num_hidden_layers - 1}, ascending")
        for name, ids in (("kv_source", self.kv_source_layer_ids), ("index_source", self.index_source_layer_ids)):
            if plain := [one for one in ids if not self.compress_ratios[one]]:
                raise ValueError(f"{name}_layer_ids has {plain}, whose compress_ratios are 0: they compress no keys")
        if alone := sorted(set(self.kv_source_layer_ids) - set(self.index_source_layer_ids)):
            raise ValueError(f"kv_source_layer_ids has {alone}, which index_source_layer_ids lacks")
        if len(self.engram_num_embeddings) != len(self.engram_layer_ids):
            raise ValueError(
                f"engram_num_embeddings has {len(self.engram_num_embeddings)} entries, engram_layer_ids "
                f"{len(self.engram_layer_ids)}"
            )

    @property
    def most_ranks(self) -> int:
        """DeepSeek's code gives a rank whole o-groups, and nobody else's cuts V4.1 further."""
        return self.o_groups

    @property
    def activation_group(self) -> int:
        """As many columns as share a scale of a weight."""
        return 32

    @property
    def key_groups(self) -> dict[str, tuple[int, int]]:
        """All columns of a window's key, the rotated ones too."""
        return {"head_dim": (self.head_dim, 32)}

    @property
    def expert_counts(self) -> dict[str, int]:
        """The draft stages have fewer experts than the layers."""
        counts = {"n_routed_experts": self.n_routed_experts}
        return counts | ({"dspark_n_routed_experts": self.draft_experts} if self.n_mtp_layers else {})

    @property
    def draft_experts(self) -> int:
        """Experts of a draft stage; 0 without stages."""
        return self.dspark_n_routed_experts or 0

    @property
    def engram_width(self) -> int:
        """Columns of the rows that a token looks up, all together: one row for each order from 2 and each head."""
        return (self.engram_max_ngram_size - 1) * self.engram_n_heads * self.engram_head_dim


def parse_config(raw: dict[str, Any], origin: PurePath | str) -> V41Config:
    """Check a `config.json` document. `origin` names it in errors.

    Raises:
        CheckpointError: it is not DeepSeek-V4.1's, or a key is missing or of a wrong type.
    """
    text = raw.get(TEXT)
    if not isinstance(text, dict):
        raise CheckpointError(f"{origin}: {TEXT}: an object is expected; DeepSeek-V4.1 has the model's numbers in it")
    try:
        return V41Config.model_validate(text | {key: value for key, value in raw.items() if key != TEXT})
    except ValidationError as error:
        raise CheckpointError(f"{origin}: {first_problem(error, 'config')}") from error
