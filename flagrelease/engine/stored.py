"""Stored tensors as the kernels take them: read by a rank's ranges, and decoded where no kernel takes the codes.

Kernels take packed FP4 with E8M0 scales, and FP8 with E8M0 or FP32 scales for each 128 x 128 block. Every other
declared form becomes one of these here: BF16 and FP16 scales become FP32, which is exact, and FP8 with blocks of
another size is decoded to BF16, rounded once as `flagrelease convert` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.quantisation import decode_fp8
from flagrelease.engine.kernels.weights import FP8_BLOCK
from flagrelease.engine.placement import Range, RankSlice
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP4, FP8, SCALE_RULE, Format
from flagrelease.model.v4.stored import StoredWeight
from flagrelease.shard.header import TensorMeta
from flagrelease.shard.reader import TensorReader

_TORCH = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
} | dict.fromkeys(FP4.weight_dtypes, torch.int8)  # fmt: skip
_E8M0_NAN = 255
_E4M3_NAN = 0x7F  # with either sign


class StoredTensors:
    """One rank's weights and scales, read when they are asked for."""

    def __init__(
        self,
        weights: dict[str, StoredWeight],
        pieces: dict[str, RankSlice],
        device: torch.device,
        reader: TensorReader,
        *,
        whole: bool,
    ) -> None:
        """`weights` and `pieces` by name; `whole`: the files hold whole tensors, of which the rank reads its ranges."""
        self._weights, self._pieces = weights, pieces
        self._device, self._reader, self._whole = device, reader, whole
        # Layers that share an input are joined and experts are stacked, so FP8 scales have one dtype in all of them.
        scales = {weight.scale.dtype for weight in weights.values() if weight.format is FP8 and weight.scale}
        self._wide_scales = scales != {"F8_E8M0"}

    def read(self, name: str) -> Tensor:
        """This rank's part of a weight: codes, or BF16 where no kernel takes such codes."""
        weight, ranges = self._weights[name], list(self._pieces[name].ranges)
        if weight.format is not None:
            width = weight.format.elements_per_byte
            ranges[-1] = ranges[-1][0] // width, ranges[-1][1] // width
        part = self._load(weight.weight, ranges).to(self._device)
        if weight.format is not FP8:
            return part
        if bool(((part.view(torch.uint8) & _E4M3_NAN) == _E4M3_NAN).any()):
            raise CheckpointError(f"{weight.weight.file}: tensor {name!r}: holds a code that is NaN")
        if _has_kernels(weight.format, weight.block):
            return part
        return decode_fp8(part, self._scale(weight), torch.bfloat16, weight.block)

    def read_scale(self, name: str) -> Tensor | None:
        """This rank's part of the scale, or None where `read` gives no codes."""
        weight = self._weights[name]
        if weight.format is None or not _has_kernels(weight.format, weight.block):
            return None
        return self._scale(weight)

    def _scale(self, weight: StoredWeight) -> Tensor:
        assert weight.scale is not None, "a weight in codes has a scale"
        ranges = [
            (begin // size, -(-end // size))
            for (begin, end), size in zip(self._pieces[weight.spec.name].ranges, weight.block, strict=True)
        ]
        stored = self._load(weight.scale, ranges)
        if stored.dtype == torch.float8_e8m0fnu:
            bad = stored.view(torch.uint8) == _E8M0_NAN
        else:
            bad = ~(stored.isfinite() & (stored >= 0))
        if bool(bad.any()):
            raise CheckpointError(
                f"{weight.scale.file}: scale {weight.scale.name!r} holds a value that is NaN, infinite or negative; "
                f"{SCALE_RULE}"
            )
        keep = weight.format is not FP8 or not self._wide_scales
        return (stored if keep else stored.float()).to(self._device)

    def _load(self, meta: TensorMeta, ranges: list[Range]) -> Tensor:
        """This rank's slice. mp files are already cut, so there it is the whole stored tensor."""
        shape = (*meta.shape[:-1], meta.shape[-1] // 2) if meta.dtype == "F4" else meta.shape
        if not self._whole:
            ranges = [(0, size) for size in shape]
        row = meta.nbytes // shape[0]
        first, last = ranges[0]
        raw = torch.empty((last - first) * row, dtype=torch.uint8)
        self._reader.read(meta, first * row, raw.numpy())
        part = raw.view(_TORCH[meta.dtype]).view(last - first, *shape[1:])
        return part[(slice(None), *(slice(*each) for each in ranges[1:]))].contiguous()


def _has_kernels(fmt: Format, block: tuple[int, int]) -> bool:
    return fmt is not FP8 or block == (FP8_BLOCK, FP8_BLOCK)
