"""The modules' view of a release: tensors of this rank by name, in the form that the numerics ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from flagrelease.engine.host_rows import Table
from flagrelease.engine.kernels.reference.quantisation import decode
from flagrelease.engine.kernels.weights import FP8_BLOCK, FP8_TILED, ExpertWeights, spread_over_rows, weight_format
from flagrelease.engine.linear import Linear
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.schemes import as_bytes, scheme_of
from flagrelease.errors import UsageError
from flagrelease.formats.formats import FP8


class TensorSource(Protocol):
    """What a module may ask of a release. Names are DeepSeek's; tensors are this rank's part, on the model's device."""

    def read(self, name: str) -> Tensor:
        """The stored tensor: codes as they are (FP4 packed as int8)."""

    def read_scale(self, name: str) -> Tensor | None:
        """The scale of the weight `name`, or None if the weight is stored plain."""

    def table(self, name: str) -> Table:
        """This rank's rows of a table as they are stored, wherever they are held."""

    def read_each(self, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`read` and `read_scale` of each, in this order; the source may work ahead."""


class Weights:
    """Tensors under a prefix, decoded or kept as the numerics say."""

    def __init__(self, source: TensorSource, numerics: Numerics, prefix: str = "") -> None:
        """`prefix` stands before every name asked for."""
        self._source, self.numerics, self._prefix = source, numerics, prefix

    def at(self, name: str) -> Weights:
        """The tensors under `name`."""
        return Weights(self._source, self.numerics, f"{self._prefix}{name}.")

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return self.numerics.dtype

    def exact(self, name: str) -> Tensor:
        """A tensor in its stored type: F32 parameters, id tables."""
        return self._source.read(self._prefix + name)

    def plain(self, name: str) -> Tensor:
        """A weight in the compute dtype, decoded if it is stored in codes (exact where scales are powers of two)."""
        full = self._prefix + name
        return decode(self._source.read(full), self._source.read_scale(full), self.dtype)

    def table(self, name: str) -> Table:
        """A table that is read by rows, as it is stored, on the device or with the host."""
        return self._source.table(self._prefix + name)

    def linear(self, name: str) -> Linear:
        """A layer whose weight DeepSeek stores as FP8, and whose input the numerics may therefore round.

        Raises:
            UsageError: it is stored in a format that the numerics do not use.
        """
        full = f"{self._prefix}{name}.weight"
        weight, scale = self._held(full, self._source.read(full), self._source.read_scale(full))
        return Linear(weight, scale, scheme_of(weight_format(weight, scale), self.numerics), full)

    def grouped(self, name: str, rows: int) -> tuple[Tensor, Tensor | None]:
        """A weight [G * rows, K] by group: [G, rows, K], and the scales of its codes [G, rows/128, K/128].

        Its input is not rounded, so codes and their plain values give the same products. None: it is plain, as
        numerics without codes want it, where it is not FP8 in blocks, and where a group's rows are not whole blocks.
        """
        full = f"{self._prefix}{name}.weight"
        weight, scale = self._source.read(full), self._source.read_scale(full)
        if weight_format(weight, scale) != "fp8" or not self.numerics.keep_codes or rows % FP8_BLOCK:
            weight, scale = decode(weight, scale, self.dtype), None
        groups = weight.shape[0] // rows
        return weight.view(groups, rows, -1), None if scale is None else scale.view(groups, rows // FP8_BLOCK, -1)

    def experts(self, ids: range) -> ExpertWeights:
        """The routed experts `ids` (global), stacked. Filled one by one, so that nothing is held twice.

        Raises:
            UsageError: they are stored in a format that the numerics do not use.
        """
        (w1, w3), (s1, s3) = self._stack(("w1", "w3"), ids)
        (w2,), (s2,) = self._stack(("w2",), ids)
        return ExpertWeights(w1, w3, w2, s1, s3, s2, ids.start)

    def _stack(self, names: tuple[str, ...], ids: range) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Weights and scales of every name, [E, ..] each; those of one expert lie side by side."""
        weights: Tensor | None = None
        scales: Tensor | None = None
        full = [f"{self._prefix}experts.{expert}.{name}.weight" for expert in ids for name in names]
        for n, (one, both) in enumerate(zip(full, self._source.read_each(full), strict=True)):
            weight, scale = self._held(one, *both)
            if scale is not None and weight_format(weight, scale) == FP8_TILED:
                scale = spread_over_rows(weight, scale)
            if weights is None:
                weights = _room(weight, len(ids), len(names))
                scales = None if scale is None else _room(scale, len(ids), len(names))
            weights[divmod(n, len(names))] = weight
            if scale is not None and scales is not None:
                as_bytes(scales)[divmod(n, len(names))] = as_bytes(scale)
        if weights is None:
            raise UsageError("a rank without experts: fewer experts than ranks")
        return weights.unbind(1), (None,) * len(names) if scales is None else scales.unbind(1)

    def _held(self, full: str, weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A weight as the model holds it: in codes with scales where the numerics keep them, else decoded."""
        if scale is None or not self.numerics.keep_codes:
            return decode(weight, scale, self.dtype), None
        fmt = weight_format(weight, scale)
        if (FP8.name if fmt == FP8_TILED else fmt) not in self.numerics.keeps:
            raise UsageError(
                f"tensor {full!r} is {fmt.upper()}, which numerics {self.numerics.name!r} does not use; --numerics "
                f"bf16 decodes it"
            )
        return weight, scale


def _room(like: Tensor, count: int, names: int) -> Tensor:
    return torch.empty((count, names, *like.shape), dtype=like.dtype, device=like.device)
