"""A model without a checkpoint: random codes of a published release, made on the device. They mean nothing.

A tensor's numbers follow from its name. A rank makes it whole and keeps its part, so ranks hold one model: what they
all hold is the same, and what they cut are pieces of what one rank would have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.host_rows import Table
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.numerics import Numerics, choose_numerics
from flagrelease.engine.parallel import Groups, alone
from flagrelease.engine.placement import RankSlice, local_pieces
from flagrelease.engine.v4.model import Model
from flagrelease.engine.weights import Weights
from flagrelease.errors import ResourceError
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.model.v4.config import ModelConfig

# Bytes of E8M0 scales: with them a layer's outputs have about its inputs' magnitude.
_FP8_SCALE, _FP4_SCALE = 121, 119
_ALONE = alone()


class RandomTensors:
    """A `TensorSource` of random codes, small scales, and norms of one."""

    def __init__(self, config: ModelConfig, device: torch.device, groups: Groups, *, fp4: bool = True) -> None:
        """This rank's slices of the tensors that `config` implies. `fp4`: routed experts are in FP4; else in FP8."""
        self._fp4 = fp4
        self._pieces = local_pieces(config, groups.mp, groups.rank, groups.o_mode)
        self._config, self._device = config, device
        self._random = torch.Generator(device)

    def read(self, name: str) -> Tensor:
        """Codes, or values in the stored dtype."""
        piece = self._pieces[name]
        self._random.manual_seed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big"))
        return _cut(self._whole(piece.spec), piece)

    def read_scale(self, name: str) -> Tensor | None:
        """One E8M0 byte for every scale."""
        piece = self._pieces[name]
        if piece.spec.storage is Storage.EXPERT and self._fp4:
            shape, byte = (*piece.shape[:-1], piece.shape[-1] // 32), _FP4_SCALE
        elif piece.spec.storage in (Storage.LINEAR, Storage.EXPERT):
            shape, byte = tuple(-(-n // 128) for n in piece.shape), _FP8_SCALE
        else:
            return None
        return torch.full(shape, byte, dtype=torch.uint8, device=self._device).view(torch.float8_e8m0fnu)

    def table(self, name: str) -> Table:
        """Both, as they are."""
        return Table(self.read(name), self.read_scale(name), "random")

    def read_each(self, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Both, one after the other."""
        return ((self.read(name), self.read_scale(name)) for name in names)

    def _whole(self, spec: TensorSpec) -> Tensor:
        if spec.storage is Storage.EXPERT and self._fp4:
            return self._bytes((*spec.shape[:-1], spec.shape[-1] // 2), 256).view(torch.int8)
        if spec.storage in (Storage.LINEAR, Storage.EXPERT):
            sign_and_fraction = self._bytes(spec.shape, 256) & 0x8F
            exponent = self._bytes(spec.shape, 4) + 4  # magnitudes from 1/8 to 2
            return (sign_and_fraction | exponent << 3 & 0x38).view(torch.float8_e4m3fn)
        if spec.storage is Storage.I64:
            return torch.randint(self._config.n_routed_experts, spec.shape, generator=self._random, device=self._device)
        if spec.storage is Storage.BF16 and len(spec.shape) == 1:
            return torch.ones(spec.shape, dtype=torch.bfloat16, device=self._device)
        values = torch.randn(spec.shape, generator=self._random, dtype=torch.float32, device=self._device)
        values *= spec.shape[-1] ** -0.5 if len(spec.shape) > 1 else 0.1
        return values if spec.storage is Storage.F32 else values.bfloat16()

    def _bytes(self, shape: tuple[int, ...], past: int) -> Tensor:
        return torch.randint(past, shape, dtype=torch.uint8, generator=self._random, device=self._device)


def _cut(whole: Tensor, piece: RankSlice) -> Tensor:
    """The rank's part, in memory of its own."""
    if piece.shape == piece.spec.shape:
        return whole
    return whole[tuple(slice(*span) for span in piece.ranges)].clone(memory_format=torch.contiguous_format)


def weight_bytes(config: ModelConfig, numerics: Numerics, groups: Groups, *, mtp: bool) -> int:
    """Bytes that this rank's weights take in memory, scales included."""
    coded = {Storage.LINEAR: 1 + 128**-2, Storage.EXPERT: 0.5 + 1 / 32 if numerics.fp4 else 1 + 128**-2}
    plain = {Storage.F32: 4, Storage.I64: 8}
    total = 0.0
    for name, piece in local_pieces(config, groups.mp, groups.rank, groups.o_mode).items():
        if mtp or not name.startswith("mtp."):
            each = coded.get(piece.spec.storage) if numerics.keep_codes else None
            held = piece.spec.shape if ".indexer." in name else piece.shape  # ranks give each other the index heads
            total += math.prod(held) * (each or plain.get(piece.spec.storage, numerics.dtype.itemsize))
    return int(total)


def random_model(
    config: ModelConfig, numerics: str, operators: str, device: Device, chunk: int, *, mtp: bool = False,
    groups: Groups = _ALONE,
) -> Model:  # fmt: skip
    """A model of these dimensions on `device`, or this rank's part of one; `mtp`: with the draft stage.

    Raises:
        UsageError: the choices contradict each other.
        ResourceError: the device has no room, or lacks the operators.
    """
    place = torch.device(device.torch_device)
    parts = config.o_groups if groups.o_mode == "shared" else groups.mp
    policy = choose_numerics(numerics, torch.bfloat16, config, parts)
    needed, (free, total) = weight_bytes(config, policy, groups, mtp=mtp), device.memory()
    room = total if device.type == "cpu" else free  # what is free of a computer's memory leaves out its file cache
    if needed > room:
        raise ResourceError(
            f"random weights of these dimensions take {needed / 1e9:.1f} GB; {device.torch_device} has "
            f"room for {room / 1e9:.1f} GB: ask for fewer --layers or --experts, or for --dimensions tiny"
        )
    # `fp8` is the policy of chips without FP4, so its experts are in FP8, as in the release that such a chip loads.
    weights = Weights(RandomTensors(config, place, groups, fp4=policy.fp4 or not policy.keep_codes), policy)
    model = Model.build(weights, config, policy, load_provider(operators, place), groups, device, mtp=mtp)
    model.chunk = chunk
    return model
