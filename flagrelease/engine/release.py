"""A release on disk as one rank sees it: exactly the expected tensors, or an error that names what is wrong.

Two layouts: `hf` (files with an index, every tensor whole: a rank reads its part) and `mpN` (a rank's tensors in
`model{rank}-mp{N}.safetensors`, or in several parts: already cut). Everything is checked from headers before data are
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flagrelease.engine.host_rows import Table
from flagrelease.engine.intake import Intake
from flagrelease.engine.modelslim import index_name, take_copies
from flagrelease.engine.placement import RankSlice, local_pieces
from flagrelease.engine.stored import StoredTensors
from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import read_config
from flagrelease.model.stored import StoredWeight, understand
from flagrelease.records.manifest import MANIFEST_NAME, OGroups, read_manifest
from flagrelease.shard.header import TensorMeta, read_header
from flagrelease.shard.index import open_checkpoint

_RANK_FILE = re.compile(r"model(\d+)-mp(\d+)(?:-part(\d+))?\.safetensors")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a release is cut. `mp` is None for hf; `o_mode` is None where every rank has whole o-groups."""

    mp: int | None
    o_mode: OGroups | None


def find_layout(folder: Path, config: FamilyConfig) -> Layout:
    """The layout of the release in `folder`, by its file names, its manifest and its shapes.

    Raises:
        CheckpointError: no weights, several layouts, a rank without files, or a manifest that says otherwise.
    """
    matches = [_RANK_FILE.fullmatch(path.name) for path in sorted(folder.glob("*.safetensors"))]
    if not matches:
        raise CheckpointError(f"{folder}: no *.safetensors file in it")
    named = [match for match in matches if match]
    if not named:
        return Layout(None, None)
    sizes = {int(match[2]) for match in named}
    if len(named) != len(matches) or len(sizes) != 1:
        raise CheckpointError(f"{folder}: files of more than one layout")
    (mp,) = sizes
    missing = sorted(set(range(mp)) - {int(match[1]) for match in named})
    if missing:
        raise CheckpointError(f"{folder}: no file for rank {missing[0]} of {mp}")
    return Layout(mp, _o_mode(folder, config, mp) if mp > config.o_groups else None)


def _o_mode(folder: Path, config: FamilyConfig, mp: int) -> OGroups:
    """From the shape of layer 0's wo_b, and from the manifest if there is one; they must agree."""
    columns = config.o_groups * config.o_lora_rank
    name = "layers.0.attn.wo_b.weight"
    meta = _rank_tensors(folder, 0).get(name)
    if meta is None:
        raise CheckpointError(f"{folder}: rank 0 has no tensor {name!r}")
    by_columns: dict[int, OGroups] = {columns // config.o_groups: "shared", columns // mp: "split"}
    seen = by_columns.get(meta.shape[-1])
    if seen is None:
        raise CheckpointError(
            f"{meta.file}: tensor {name!r}: {meta.shape[-1]} columns fit no o-group layout of mp {mp}"
        )
    if (folder / MANIFEST_NAME).exists():
        said = read_manifest(folder).target.o_groups
        if said != seen:
            raise CheckpointError(f"{folder / MANIFEST_NAME}: o_groups is {said!r}, but {name!r} is cut as {seen!r}")
    return seen


def _rank_tensors(folder: Path, rank: int) -> dict[str, TensorMeta]:
    tensors: dict[str, TensorMeta] = {}
    for path in sorted(folder.glob(f"model{rank}-mp*.safetensors")):
        for name, meta in read_header(path).tensors.items():
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} is in both {tensors[name].file} and {path}")
            tensors[name] = meta
    return tensors


class Release:
    """This rank's tensors of a release. Implements `weights.TensorSource`.

    Attributes:
        config: of the model.
        o_mode: how o-groups are shared by the ranks this was opened for (None: every rank has whole ones).
    """

    def __init__(self, folder: Path, rank: int, mp: int, intake: Intake) -> None:
        """Read headers and check them; data will come through `intake`, to its device.

        Raises:
            CheckpointError: a tensor is missing, is not known, or is stored in no declared form; a copy differs.
            UsageError: the release is cut for another number of ranks.
        """
        self.config, _ = read_config(folder / "config.json")
        layout = find_layout(folder, self.config)
        if layout.mp not in (None, mp):
            raise UsageError(
                f"{folder}: cut for {layout.mp} ranks, but {mp} run: torchrun --nproc-per-node {layout.mp}"
            )
        # of an hf release each rank reads its part; `split` holds nothing twice
        self.o_mode: OGroups | None = layout.o_mode if layout.mp else "split" if mp > self.config.o_groups else None
        pieces = local_pieces(self.config, mp, rank, self.o_mode)
        whole = layout.mp is None
        metas = dict(open_checkpoint(folder, index_name(folder)).tensors) if whole else _rank_tensors(folder, rank)
        copies = take_copies(folder, self.config, metas)
        weights = _understand(folder, self.config, pieces, metas, whole=whole)
        self._stored = StoredTensors(weights, pieces, intake, whole=whole)
        for copy, name in copies:
            self._stored.require_same(copy, name)

    @property
    def formats(self) -> frozenset[str]:
        """Names of the formats (`formats.Format.name`) that this rank's weights are stored in."""
        return self._stored.formats

    @property
    def weights(self) -> int:
        """How many weights this rank holds."""
        return len(self._stored.names)

    def read(self, name: str) -> Tensor:
        """This rank's part of a weight: codes as stored, or BF16 where no kernel takes such codes.

        Raises:
            CheckpointError: a code or a zero point that its format does not have, a scale that is no number to
                multiply with.
        """
        return self._stored.read(name)

    def read_each(self, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`read` and `read_scale` of each, in this order, but several at once.

        Raises:
            CheckpointError: as they do.
        """
        return self._stored.read_each(names)

    def table(self, name: str) -> Table:
        """This rank's rows of a table, on the device or, if it is too large for that, with the host.

        Raises:
            CheckpointError: its file cannot be read.
        """
        return self._stored.table(name)

    def read_scale(self, name: str) -> Tensor | None:
        """This rank's part of its scale, if `read` gives codes, in the form that `ExpertWeights` shows.

        Raises:
            CheckpointError: a scale is no number to multiply with.
        """
        return self._stored.read_scale(name)


def _understand(
    folder: Path, config: FamilyConfig, pieces: dict[str, RankSlice], metas: dict[str, TensorMeta], *, whole: bool
) -> dict[str, StoredWeight]:
    """Require exactly the expected tensors in declared forms. Returns this rank's weights by name."""
    parts = None if whole else {name: (piece.spec, piece.shape) for name, piece in pieces.items()}
    weights, problems = understand(metas, config, folder / "config.json", parts)
    if problems:
        raise CheckpointError(problems[0])
    own = {weight.spec.name: weight for weight in weights if weight.spec.name in pieces}
    for name, weight in own.items():
        if weight.format is not None:
            _require_whole_blocks(weight, pieces[name])
    return own


def _require_whole_blocks(weight: StoredWeight, piece: RankSlice) -> None:
    """Refuse a rank's part that cuts a block of scales. A scale of a whole row holds for each part of the row."""
    if weight.format is not None and weight.format.by_row:
        return
    for (begin, end), size, limit in zip(piece.ranges, weight.block, piece.spec.shape, strict=True):
        if begin % size or (end % size and end != limit):
            meta = weight.weight
            raise CheckpointError(
                f"{meta.file}: tensor {meta.name!r}: the rank's part {begin}:{end} cuts a block of {size}"
            )
