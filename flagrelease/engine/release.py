"""A release on disk as one rank sees it: exactly the expected tensors, or an error that names what is wrong.

Two layouts: `hf` (files with an index, every tensor whole: a rank reads its part) and `mpN` (a rank's tensors in
`model{rank}-mp{N}.safetensors`, or in several parts: already cut). Everything is checked from headers before data are
read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flagrelease.engine.placement import Range, RankSlice, local_pieces
from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.v4.config import ModelConfig, read_config
from flagrelease.model.v4.inventory import Storage
from flagrelease.records.manifest import MANIFEST_NAME, OGroups, read_manifest
from flagrelease.shard.header import TensorMeta, read_header
from flagrelease.shard.index import open_checkpoint
from flagrelease.shard.reader import TensorReader

_RANK_FILE = re.compile(r"model(\d+)-mp(\d+)(?:-part(\d+))?\.safetensors")
_TORCH = {
    "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I8": torch.int8, "F4": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
_FP4_GROUP = 32
_SCALES = ("F8_E8M0", "F32")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a release is cut. `mp` is None for hf; `o_mode` is None where every rank has whole o-groups."""

    mp: int | None
    o_mode: OGroups | None


def find_layout(folder: Path, config: ModelConfig) -> Layout:
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


def _o_mode(folder: Path, config: ModelConfig, mp: int) -> OGroups:
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

    def __init__(self, folder: Path, rank: int, mp: int, device: torch.device, reader: TensorReader) -> None:
        """Read headers and check them; data will come through `reader`.

        Raises:
            CheckpointError: a tensor is missing, is not known, or has a wrong dtype or shape.
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
        self._device, self._reader, self._whole = device, reader, layout.mp is None
        self._pieces = local_pieces(self.config, mp, rank, self.o_mode)
        self._metas = open_checkpoint(folder).tensors if self._whole else _rank_tensors(folder, rank)
        self._scales = _check(folder, self.config, self._pieces, self._metas, whole=self._whole)

    def read(self, name: str) -> Tensor:
        """This rank's part of a weight, as stored."""
        meta, ranges = self._metas[name], list(self._pieces[name].ranges)
        if meta.dtype in ("I8", "F4") and self._pieces[name].spec.storage is Storage.EXPERT:
            ranges[-1] = ranges[-1][0] // 2, ranges[-1][1] // 2  # two codes a byte
        return self._load(meta, ranges)

    def read_scale(self, name: str) -> Tensor | None:
        """This rank's part of its scale, if it is stored in codes."""
        block = self._scales.get(name)
        if block is None:
            return None
        ranges = [
            (begin // size, -(-end // size))
            for (begin, end), size in zip(self._pieces[name].ranges, block, strict=True)
        ]
        return self._load(self._metas[_scale_name(name)], ranges)

    def _load(self, meta: TensorMeta, ranges: list[Range]) -> Tensor:
        """The part of a stored tensor; of an mp release what is stored is the part."""
        dtype = _TORCH[meta.dtype]
        shape = (*meta.shape[:-1], meta.shape[-1] // 2) if meta.dtype == "F4" else meta.shape
        if not self._whole:
            ranges = [(0, size) for size in shape]
        row = meta.nbytes // shape[0]
        first, last = ranges[0]
        raw = torch.empty((last - first) * row, dtype=torch.uint8)
        self._reader.read(meta, first * row, raw.numpy())
        part = raw.view(dtype).view(last - first, *shape[1:])[(slice(None), *(slice(*each) for each in ranges[1:]))]
        return part.contiguous().to(self._device)


def _scale_name(weight: str) -> str:
    return weight.removesuffix("weight") + "scale"


def _check(
    folder: Path, config: ModelConfig, pieces: dict[str, RankSlice], metas: dict[str, TensorMeta], *, whole: bool
) -> dict[str, tuple[int, int]]:
    """Require exactly the expected tensors. Returns the (rows, columns) that share a scale, for weights in codes."""
    scales: dict[str, tuple[int, int]] = {}
    expected = set(pieces)
    for name, piece in pieces.items():
        if name not in metas:
            raise CheckpointError(f"{folder}: tensor {name!r} is missing")
        block = _check_weight(metas[name], piece, config, whole=whole)
        if block is not None:
            scales[name] = block
            expected.add(_scale_name(name))
    other_ranks = {name for name in metas if whole and _is_other_expert(name, pieces, config)}
    extra = sorted(set(metas) - expected - other_ranks)
    if extra:
        raise CheckpointError(f"{metas[extra[0]].file}: tensor {extra[0]!r} is not part of this model")
    for name, block in scales.items():
        _check_scale(folder, name, pieces[name], block, metas, whole=whole)
    _check_one_expert_format(pieces, metas)
    return scales


def _is_other_expert(name: str, pieces: dict[str, RankSlice], config: ModelConfig) -> bool:
    """Whether `name` is a tensor of a routed expert that another rank owns."""
    match = re.fullmatch(r"(.*\.ffn\.experts\.)(\d+)(\.w[123]\.)(weight|scale)", name)
    if match is None or int(match[2]) >= config.n_routed_experts or str(int(match[2])) != match[2]:
        return False
    own = next((piece.spec.expert for piece in pieces.values() if piece.spec.expert is not None), 0)
    return f"{match[1]}{own}{match[3]}weight" in pieces


def _check_weight(meta: TensorMeta, piece: RankSlice, config: ModelConfig, *, whole: bool) -> tuple[int, int] | None:
    """Dtype and shape of one weight. Returns the block that shares a scale, if it has one."""
    name, storage = piece.spec.name, piece.spec.storage
    allowed = _allowed(name, storage, config)
    if meta.dtype not in allowed:
        raise CheckpointError(f"{meta.file}: tensor {name!r} is {meta.dtype}; expected {' or '.join(allowed)}")
    shape = piece.spec.shape if whole else piece.shape
    if meta.dtype == "I8":  # packed: the header counts bytes
        shape = (*shape[:-1], shape[-1] // 2)
    if meta.shape != shape:
        raise CheckpointError(f"{meta.file}: tensor {name!r} has shape {list(meta.shape)}; expected {list(shape)}")
    if meta.dtype in ("I8", "F4"):
        return 1, _FP4_GROUP
    if meta.dtype != "F8_E4M3":
        return None
    block = config.block_size
    assert block is not None, "F8 is allowed only with a quantization_config"
    for (begin, end), size, limit in zip(piece.ranges, block, piece.spec.shape, strict=True):
        if begin % size or (end % size and end != limit):
            raise CheckpointError(f"{meta.file}: tensor {name!r}: the rank's part {begin}:{end} cuts a block of {size}")
    return block


def _allowed(name: str, storage: Storage, config: ModelConfig) -> tuple[str, ...]:
    plain = {Storage.BF16: "BF16", Storage.F32: "F32", Storage.I64: "I64"}
    if storage in plain:
        return (plain[storage],)
    if config.quantization_config is None:
        return ("BF16",)
    if storage is Storage.LINEAR:  # DeepSeek's own mp checkpoints hold wo_a decoded
        return ("F8_E4M3", "BF16") if name.endswith(".wo_a.weight") else ("F8_E4M3",)
    return {"fp4": ("I8", "F4"), "fp8": ("F8_E4M3",), None: ("I8", "F4", "F8_E4M3")}[config.declared_expert_dtype]


def _check_scale(
    folder: Path, name: str, piece: RankSlice, block: tuple[int, int], metas: dict[str, TensorMeta], *, whole: bool
) -> None:
    scale = metas.get(_scale_name(name))
    if scale is None:
        raise CheckpointError(f"{folder}: tensor {_scale_name(name)!r} is missing")
    shape = tuple(-(-n // size) for n, size in zip(piece.spec.shape if whole else piece.shape, block, strict=True))
    if scale.dtype not in _SCALES:
        raise CheckpointError(f"{scale.file}: tensor {scale.name!r} is {scale.dtype}; expected {' or '.join(_SCALES)}")
    if scale.shape != shape:
        raise CheckpointError(
            f"{scale.file}: tensor {scale.name!r} has shape {list(scale.shape)}; expected {list(shape)}"
        )


def _check_one_expert_format(pieces: dict[str, RankSlice], metas: dict[str, TensorMeta]) -> None:
    experts = [metas[name] for name, piece in pieces.items() if piece.spec.storage is Storage.EXPERT]
    odd = next((meta for meta in experts if meta.dtype != experts[0].dtype), None)
    if odd is not None:
        raise CheckpointError(f"{odd.file}: tensor {odd.name!r} is {odd.dtype}, other experts are {experts[0].dtype}")
