"""`Source`: a checkpoint opened and understood: every weight with its scale, format and place in the inventory.

What headers, index and config can show to be wrong is found here, before any weight is read; what each stored tensor
means is decided in `flagrelease.model.stored`, by the declarations that verify and the engine read too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import SOURCE_FORMATS, Format
from flagrelease.model.config import FamilyConfig
from flagrelease.model.drafts import DRAFT_PREFIX
from flagrelease.model.families import family_of, parse_config, read_config_bytes
from flagrelease.model.stored import StoredWeight, understand
from flagrelease.model.tensors import Storage
from flagrelease.records.source_identity import SourceIdentity, identify_checkpoint
from flagrelease.shard.files import CheckpointFiles, Told
from flagrelease.shard.folder import FolderFiles
from flagrelease.shard.index import CheckpointIndex, survey
from flagrelease.source.companions import CONFIG_NAME, Companions, survey_companions
from flagrelease.source.hash_routing import routing_problems


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint whose headers, index and config agree. Tensors are in the order of files and offsets."""

    files: CheckpointFiles
    config: FamilyConfig
    raw_config: dict[str, Any] = field(repr=False)
    identity: SourceIdentity
    index: CheckpointIndex
    companions: Companions = field(repr=False)
    tensors: tuple[StoredWeight, ...] = field(repr=False)  # V4-Pro has 145,000: a traceback with them takes minutes

    @property
    def root(self) -> PurePath:
        """What messages and records call the checkpoint."""
        return self.files.root

    def without_drafts(self) -> Source:
        """The same checkpoint, as far as its model answers without draft stages; files and identity stay."""
        layers = self.config.num_hidden_layers
        raw = family_of(self.config).without_drafts(self.raw_config, layers)
        tensors = tuple(tensor for tensor in self.tensors if not tensor.spec.name.startswith(DRAFT_PREFIX))
        return replace(self, config=parse_config(raw, self.root / CONFIG_NAME), raw_config=raw, tensors=tensors)

    @property
    def expert_format(self) -> Format | None:
        """The format of the routed experts; None if they are BF16, or if a surveyed source has none."""
        return next((t.format for t in self.tensors if t.spec.storage is Storage.EXPERT), None)


def read_source(where: Path | CheckpointFiles, told: Told = lambda done, total: None) -> Source:
    """Understand the checkpoint in the folder `where`, or wherever its files are.

    Headers are read, and a few MB of data for the identity.

    `told(done, total)` is called with the headers read.

    Raises:
        CheckpointError: the first problem that `survey_source` lists.
    """
    source, problems = survey_source(where, told)
    if problems:
        raise CheckpointError(problems[0])
    return source


def survey_source(where: Path | CheckpointFiles, told: Told = lambda done, total: None) -> tuple[Source, list[str]]:
    """Understand what can be understood, and list every problem as a sentence.

    `told(done, total)` is called with the headers read.

    Raises:
        CheckpointError: nothing can be said: no config.json, no tensors, a header that breaks the format.
    """
    files = FolderFiles(where) if isinstance(where, Path) else where
    config_path = files.root / CONFIG_NAME
    if CONFIG_NAME not in files.names():
        raise CheckpointError(f"{config_path}: not found; a checkpoint needs its config.json")
    index, problems = survey(files, told)
    content = files.read(CONFIG_NAME)
    config, raw = read_config_bytes(content, config_path)
    tensors, misunderstood = understand(index.tensors, config, config_path)
    misunderstood += [
        f"{t.weight.file}: tensor {t.spec.name!r}: stored as {t.format.name}, which is a release for a serving stack; "
        f"convert the checkpoint that it was made from"
        for t in tensors
        if t.format is not None and t.format not in SOURCE_FORMATS
    ][:1]
    misunderstood += routing_problems(files, tensors, config.n_routed_experts)
    identity = identify_checkpoint(files, index, hashlib.sha256(content).hexdigest())
    companions, unfit = survey_companions(files, config.vocab_size, raw)
    found = problems + misunderstood + unfit
    if problems:  # the reason may stand in front of the files that are missing because of it
        known = list(family_of(config).reasons(index.tensors, config, config_path))
        found = known + [problem for problem in found if problem not in known]
    return Source(files, config, raw, identity, index, companions, tensors), found
