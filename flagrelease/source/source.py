"""`Source`: a checkpoint opened and understood: every weight with its scale, format and place in the inventory.

What headers, index and config can show to be wrong is found here, before any weight is read; what each stored tensor
means is decided in `flagrelease.model.v4.stored`, by the declarations that verify and the engine read too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import SOURCE_FORMATS, Format
from flagrelease.model.v4.config import ModelConfig, parse_config, read_config
from flagrelease.model.v4.drafts import DRAFT_PREFIX, without_drafts
from flagrelease.model.v4.inventory import Storage
from flagrelease.model.v4.stored import StoredWeight, understand
from flagrelease.records.source_identity import SourceIdentity, identify_checkpoint
from flagrelease.shard.index import CheckpointIndex, survey
from flagrelease.source.companions import Companions, survey_companions
from flagrelease.source.hash_routing import routing_problems


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint whose headers, index and config agree. Tensors are in the order of files and offsets."""

    folder: Path
    config: ModelConfig
    raw_config: dict[str, Any] = field(repr=False)
    identity: SourceIdentity
    index: CheckpointIndex
    companions: Companions = field(repr=False)
    tensors: tuple[StoredWeight, ...] = field(repr=False)  # V4-Pro has 145,000: a traceback with them takes minutes

    def without_drafts(self) -> Source:
        """The same checkpoint, as far as its model answers without draft stages; files and identity stay."""
        layers = self.config.num_hidden_layers
        raw = without_drafts(self.raw_config, layers)
        tensors = tuple(tensor for tensor in self.tensors if not tensor.spec.name.startswith(DRAFT_PREFIX))
        return replace(self, config=parse_config(raw, self.folder / "config.json"), raw_config=raw, tensors=tensors)

    @property
    def expert_format(self) -> Format | None:
        """The format of the routed experts; None if they are BF16, or if a surveyed source has none."""
        return next((t.format for t in self.tensors if t.spec.storage is Storage.EXPERT), None)


def read_source(folder: Path, told: Callable[[int, int], None] = lambda done, total: None) -> Source:
    """Understand the checkpoint in `folder`. Reads headers, and a few MB of data for the identity.

    `told(done, total)` is called with the headers read.

    Raises:
        CheckpointError: the first problem that `survey_source` lists.
    """
    source, problems = survey_source(folder, told)
    if problems:
        raise CheckpointError(problems[0])
    return source


def survey_source(
    folder: Path, told: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Source, list[str]]:
    """Understand what can be understood, and list every problem as a sentence.

    `told(done, total)` is called with the headers read.

    Raises:
        CheckpointError: nothing can be said: no config.json, no tensors, a header that breaks the format.
    """
    config_path = folder / "config.json"
    if folder.is_dir() and not config_path.is_file():
        raise CheckpointError(f"{config_path}: not found; a checkpoint folder needs its config.json")
    index, problems = survey(folder, told)
    config, raw = read_config(config_path)
    tensors, misunderstood = understand(index.tensors, config, config_path)
    misunderstood += [
        f"{t.weight.file}: tensor {t.spec.name!r}: stored as {t.format.name}, which is a release for a serving stack; "
        f"convert the checkpoint that it was made from"
        for t in tensors
        if t.format is not None and t.format not in SOURCE_FORMATS
    ][:1]
    misunderstood += routing_problems(tensors, config.n_routed_experts)
    identity = identify_checkpoint(index, hashlib.sha256(config_path.read_bytes()).hexdigest())
    companions, unfit = survey_companions(folder, config.vocab_size, raw)
    return Source(folder, config, raw, identity, index, companions, tensors), problems + misunderstood + unfit
