"""Stored tensors as the kernels take them: read by a rank's ranges, and decoded where no kernel takes the codes.

| stored | what kernels take |
|---|---|
| FP4 | packed codes, E8M0 scales |
| FP8 in blocks of 128 x 128 | codes, E8M0 or FP32 scales (BF16 and FP16 ones become FP32, which is exact) |
| FP8 in tiles of 32 x 32 | codes, E8M0 scales |
| FP8 in other blocks | BF16, rounded once as `flagrelease convert` does |
| INT8, FP8 with a scale for each row | codes, FP32 scales [rows] |
| MXFP8 | codes, the bytes of E8M0 scales |

A code or a scale that is no number, or that its format does not have, is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from flagrelease.engine.host_rows import Table, host_rows
from flagrelease.engine.intake import Intake
from flagrelease.engine.kernels.reference.quantisation import decode_fp8
from flagrelease.engine.kernels.weights import FP8_BLOCK, FP8_TILE
from flagrelease.engine.placement import Range, RankSlice
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP4, FP8, INT8, MXFP8, SCALE_RULE
from flagrelease.model.stored import StoredWeight
from flagrelease.shard.header import TensorMeta

_TORCH = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
} | dict.fromkeys(FP4.weight_dtypes, torch.int8)  # fmt: skip
_E8M0_NAN = 255
_E4M3_NAN = 0x7F  # with either sign
_COMPARED = 1 << 26  # bytes at a time
_SHARE = 0.75  # of a device's memory, for weights with tables; the rest is for caches and what a step needs
Fetch = Callable[[TensorMeta, int, int], Tensor]  # bytes of a tensor, on the device


class StoredTensors:
    """One rank's weights and scales, read when they are asked for."""

    def __init__(
        self,
        weights: dict[str, StoredWeight],
        pieces: dict[str, RankSlice],
        intake: Intake,
        *,
        whole: bool,
    ) -> None:
        """`weights` and `pieces` by name; `whole`: the files hold whole tensors, of which the rank reads its ranges."""
        self._weights, self._pieces = weights, pieces
        self._intake, self._whole = intake, whole
        # Layers that share an input are joined and experts are stacked, so among the linears and among the experts FP8
        # scales have one dtype.
        self._wide_scales = {
            weight.spec.storage
            for weight in weights.values()
            if weight.format is FP8 and weight.scale and weight.scale.dtype != "F8_E8M0"
        }

    @property
    def names(self) -> frozenset[str]:
        """Names of the weights."""
        return frozenset(self._weights)

    @property
    def formats(self) -> frozenset[str]:
        """Names of the formats that weights are stored in."""
        return frozenset(weight.format.name for weight in self._weights.values() if weight.format is not None)

    def read(self, name: str) -> Tensor:
        """This rank's part of a weight: codes, or BF16 where no kernel takes such codes."""
        return self._read(name, self._intake.fetch_large)

    def read_each(self, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`read` and `read_scale` of each, in this order, but several at once."""
        return self._intake.each(lambda name: (self._read(name, self._intake.fetch), self.read_scale(name)), names)

    def table(self, name: str) -> Table:
        """This rank's rows of a table as they are stored, without reading them where they stay with the host.

        They go to the device if all that this rank holds takes at most three quarters of it; else they stay. A code
        that is NaN is not looked for, as that would read all of it; `flagrelease verify` has.
        """
        weight, (first, last) = self._weights[name], self._pieces[name].ranges[0]
        hosted = self._intake.device.type == "cpu" or self._bytes() > _SHARE * self._intake.opened.memory()[1]
        how, found = f"on {self._intake.device}", list[Tensor]()
        for meta in (weight.weight, weight.scale):
            if meta is None:
                continue
            rows, row = meta.shape[0], meta.nbytes // meta.shape[0]
            begin, end = (min(first, rows), min(last, rows)) if self._whole else (0, rows)  # padding is in no whole one
            if hosted:
                part = host_rows(meta, begin * row, (end - begin) * row, self._intake)
                data, how = part.data, part.how if meta is weight.weight or not part.pinned else how
            else:
                data = self._intake.fetch_large(meta, begin * row, (end - begin) * row)
            found.append(data.view(_TORCH[meta.dtype]).view(end - begin, *meta.shape[1:]))
        return Table(found[0], found[1] if len(found) > 1 else None, how)

    def _bytes(self) -> int:
        """Of all that this rank holds, scales included."""
        total = 0
        for name, weight in self._weights.items():
            stored = weight.weight.nbytes + (weight.scale.nbytes if weight.scale else 0)
            part = prod(self._pieces[name].shape) / prod(weight.spec.shape) if self._whole else 1
            total += int(stored * part)
        return total

    def _read(self, name: str, fetch: Fetch) -> Tensor:
        weight, ranges = self._weights[name], list(self._pieces[name].ranges)
        if weight.format is not None:
            width = weight.format.elements_per_byte
            ranges[-1] = ranges[-1][0] // width, ranges[-1][1] // width
        part = self._cut(weight.weight, ranges, fetch)
        if weight.format is None or weight.format is FP4:
            return part
        _check_codes(weight, part)
        if weight.offset is not None:
            self._check_offset(weight, weight.offset)
        if self._has_kernels(weight):
            return part
        return decode_fp8(part, self._scale(weight), torch.bfloat16, weight.block)

    def read_scale(self, name: str) -> Tensor | None:
        """This rank's part of the scale, or None where `read` gives no codes."""
        weight = self._weights[name]
        if weight.format is None or not self._has_kernels(weight):
            return None
        return self._scale(weight)

    def require_same(self, copy: TensorMeta, name: str) -> None:
        """Refuse a tensor that is stored as a copy of `name` and differs from it in this rank's rows.

        Raises:
            CheckpointError: dtype, shape or a byte differs.
        """
        original = self._weights[name].weight
        same = (copy.dtype, copy.shape) == (original.dtype, original.shape)
        row = original.nbytes // original.shape[0]
        begin, end = (row * at for at in self._pieces[name].ranges[0])
        while same and begin < end:
            size = min(end - begin, _COMPARED)
            parts = (self._intake.read(meta, begin, size) for meta in (copy, original))
            same, begin = torch.equal(*parts), begin + size
        if not same:
            raise CheckpointError(
                f"{copy.file}: tensor {copy.name!r} differs from {name!r}, of which it is to be a copy for the draft "
                f"stage"
            )

    def _has_kernels(self, weight: StoredWeight) -> bool:
        """Whether kernels take the codes: tiles of 32 x 32 if all scales are E8M0, for they are joined with others."""
        tiled = weight.block == (FP8_TILE, FP8_TILE) and weight.spec.storage not in self._wide_scales
        return weight.format is not FP8 or tiled or weight.block == (FP8_BLOCK, FP8_BLOCK)

    def _scale(self, weight: StoredWeight) -> Tensor:
        assert weight.scale is not None, "a weight in codes has a scale"
        stored = self._cut(weight.scale, self._scale_ranges(weight), self._intake.read)
        _check_scale(weight.scale, stored)
        stored = stored.to(self._intake.device, non_blocking=True)
        if weight.format is MXFP8:
            return stored.view(torch.uint8)
        if weight.format is not None and weight.format.by_row:
            return stored.squeeze(-1).float()
        wide = weight.format is FP8 and weight.spec.storage in self._wide_scales
        return stored.float() if wide else stored

    def _check_offset(self, weight: StoredWeight, offset: TensorMeta) -> None:
        if bool((self._cut(offset, self._scale_ranges(weight), self._intake.read) != 0).any()):
            raise CheckpointError(
                f"{offset.file}: tensor {offset.name!r} holds a zero point that is not 0; weights are stored "
                f"symmetrically, without zero points"
            )

    def _scale_ranges(self, weight: StoredWeight) -> list[Range]:
        return [
            (begin // size, -(-end // size))
            for (begin, end), size in zip(self._pieces[weight.spec.name].ranges, weight.block, strict=True)
        ]

    def _cut(self, meta: TensorMeta, ranges: list[Range], fetch: Fetch) -> Tensor:
        """This rank's slice, where `fetch` puts it. mp files are already cut: there it is the whole stored tensor."""
        shape = (*meta.shape[:-1], meta.shape[-1] // 2) if meta.dtype == "F4" else meta.shape
        if not self._whole:
            ranges = [(0, size) for size in shape]
        row = meta.nbytes // shape[0]
        first, last = (min(at, shape[0]) for at in ranges[0])  # padded rows are in no whole tensor
        part = fetch(meta, first * row, (last - first) * row)
        part = part.view(_TORCH[meta.dtype]).view(last - first, *shape[1:])
        return part[(slice(None), *(slice(*each) for each in ranges[1:]))].contiguous()


def _check_codes(weight: StoredWeight, part: Tensor) -> None:
    where = f"{weight.weight.file}: tensor {weight.weight.name!r}"
    if weight.format is INT8:
        if bool((part == -128).any()):
            raise CheckpointError(f"{where}: holds the code -128; codes of symmetric INT8 are -127 to 127")
    elif int((part.view(torch.uint8) & _E4M3_NAN).amax()) == _E4M3_NAN:
        raise CheckpointError(f"{where}: holds a code that is NaN")


def _check_scale(scale: TensorMeta, stored: Tensor) -> None:
    bytewise = stored.element_size() == 1
    bad = stored.view(torch.uint8) == _E8M0_NAN if bytewise else ~(stored.isfinite() & (stored >= 0))
    if bool(bad.any()):
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r} holds a value that is NaN, infinite or negative; {SCALE_RULE}"
        )
