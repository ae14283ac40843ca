"""`inspect`: what a checkpoint holds, from headers alone, and where config, index and headers disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import family_of
from flagrelease.model.stored import StoredWeight
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.source import survey_source


class Tally(BaseModel):
    """Tensors and their bytes."""

    model_config = ConfigDict(frozen=True)

    tensors: int
    bytes: int


class Inspection(BaseModel):
    """What `flagrelease inspect` reports.

    Attributes:
        dtypes: stored dtype -> tensors and bytes, scales included.
        formats: what weights are (fp4, fp8 or the plain dtype) -> logical tensors and stored bytes with their scales.
        scales: dtype of scales -> tensors and bytes.
        family: of the model, as people call it.
        experts, draft_experts: of a layer, and of a draft stage (0 without stages).
        layers: kind of attention -> number of layers.
        logical_elements: elements of all understood weights; two FP4 codes a byte count as two.
        left_out: file or folder that would not go into a release -> why.
        remarks: what is unusual about the checkpoint but no reason to refuse it, as sentences.
        problems: every disagreement, as a sentence with tensor, file and rule.
    """

    model_config = ConfigDict(frozen=True)

    folder: str
    family: str
    files: int
    tensors: int
    bytes: int
    identity: str
    dtypes: dict[str, Tally]
    formats: dict[str, Tally]
    scales: dict[str, Tally]
    block_size: tuple[int, int] | None
    layers: dict[str, int]
    mtp_stages: int
    dspark: bool
    experts: int
    draft_experts: int
    experts_per_token: int
    logical_elements: int
    left_out: dict[str, str]
    remarks: list[str]
    problems: list[str]


def inspect_checkpoint(
    where: Path | CheckpointFiles, told: Callable[[int, int], None] = lambda done, total: None
) -> Inspection:
    """Look at the checkpoint in the folder `where`, or wherever its files are.

    `told(done, total)` is called with the headers read.

    Raises:
        CheckpointError: there is no checkpoint or config, or a header breaks the format, so nothing can be said.
    """
    source, problems = survey_source(where, told)
    config, stored = source.config, source.index.tensors.values()
    return Inspection(
        folder=str(source.root),
        family=family_of(config).title,
        files=len(source.index.headers),
        tensors=len(source.index.tensors),
        bytes=source.index.total_size,
        identity=source.identity.digest,
        dtypes=_tally((meta.dtype, meta.nbytes) for meta in stored),
        formats=_tally((_format(t), t.weight.nbytes + (t.scale.nbytes if t.scale else 0)) for t in source.tensors),
        scales=_tally((t.scale.dtype, t.scale.nbytes) for t in source.tensors if t.scale),
        block_size=config.block_size,
        layers=_layers(config),
        mtp_stages=config.n_mtp_layers,
        dspark=config.is_dspark,
        experts=config.n_routed_experts,
        draft_experts=list(config.expert_counts.values())[-1] if config.n_mtp_layers else 0,
        experts_per_token=config.num_experts_per_tok,
        logical_elements=sum(_elements(t) for t in source.tensors),
        left_out=source.companions.left_out,
        remarks=list(source.index.remarks),
        problems=problems,
    )


def _tally(pairs: Any) -> dict[str, Tally]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for key, nbytes in pairs:
        counts[key] += 1
        sizes[key] += nbytes
    return {key: Tally(tensors=counts[key], bytes=sizes[key]) for key in sorted(sizes, key=sizes.__getitem__)[::-1]}


def _format(tensor: StoredWeight) -> str:
    return tensor.format.name if tensor.format else tensor.weight.dtype


def _elements(tensor: StoredWeight) -> int:
    return tensor.weight.elements * (tensor.format.elements_per_entry(tensor.weight.dtype) if tensor.format else 1)


def _layers(config: FamilyConfig) -> dict[str, int]:
    counts = Counter(config.compress_ratios[: config.num_hidden_layers])
    words = family_of(config).attention
    return {words[ratio]: counts[ratio] for ratio in sorted(counts)}
