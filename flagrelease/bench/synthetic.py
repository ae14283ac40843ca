"""A model without a checkpoint: random codes of a published release, made on the device. They mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.model import Model
from flagrelease.engine.numerics import choose_numerics
from flagrelease.engine.parallel import alone
from flagrelease.engine.weights import Weights
from flagrelease.model.config import ModelConfig
from flagrelease.model.tensors import Storage, TensorSpec, inventory

# Bytes of E8M0 scales: with them a layer's outputs have about its inputs' magnitude.
_FP8_SCALE, _FP4_SCALE = 121, 119


class RandomTensors:
    """A `TensorSource` of random codes, small scales, and norms of one."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        """Of the tensors that `config` implies."""
        self._specs: dict[str, TensorSpec] = inventory(config)
        self._config, self._device = config, device
        self._random = torch.Generator(device).manual_seed(0)

    def read(self, name: str) -> Tensor:
        """Codes, or values in the stored dtype."""
        spec = self._specs[name]
        if spec.storage is Storage.EXPERT:
            return self._bytes((*spec.shape[:-1], spec.shape[-1] // 2), 256).view(torch.int8)
        if spec.storage is Storage.LINEAR:
            sign_and_fraction = self._bytes(spec.shape, 256) & 0x8F
            exponent = self._bytes(spec.shape, 4) + 4  # magnitudes from 1/8 to 2
            return (sign_and_fraction | exponent << 3 & 0x38).view(torch.float8_e4m3fn)
        if spec.storage is Storage.I64:
            return torch.randint(self._config.n_routed_experts, spec.shape, generator=self._random, device=self._device)
        if spec.storage is Storage.BF16 and len(spec.shape) == 1:
            return torch.ones(spec.shape, dtype=torch.bfloat16, device=self._device)
        values = torch.randn(spec.shape, generator=self._random, device=self._device)
        values *= spec.shape[-1] ** -0.5 if len(spec.shape) > 1 else 0.1
        return values if spec.storage is Storage.F32 else values.bfloat16()

    def read_scale(self, name: str) -> Tensor | None:
        """One E8M0 byte for every scale."""
        spec = self._specs[name]
        if spec.storage is Storage.EXPERT:
            shape, byte = (*spec.shape[:-1], spec.shape[-1] // 32), _FP4_SCALE
        elif spec.storage is Storage.LINEAR:
            shape, byte = tuple(-(-n // 128) for n in spec.shape), _FP8_SCALE
        else:
            return None
        return torch.full(shape, byte, dtype=torch.uint8, device=self._device).view(torch.float8_e8m0fnu)

    def _bytes(self, shape: tuple[int, ...], past: int) -> Tensor:
        return torch.randint(past, shape, dtype=torch.uint8, generator=self._random, device=self._device)


def random_model(
    config: ModelConfig, numerics: str, operators: str, device: Device, chunk: int, *, mtp: bool = False
) -> Model:
    """A model of these dimensions on `device`; `mtp`: with the draft stage.

    Raises:
        UsageError: the choices contradict each other.
        ResourceError: the device has no room, or lacks the operators.
    """
    place = torch.device(device.torch_device)
    policy = choose_numerics(numerics, torch.bfloat16, config)
    weights = Weights(RandomTensors(config, place), policy)
    model = Model.build(weights, config, policy, load_provider(operators, place), alone(), device, mtp=mtp)
    model.chunk = chunk
    return model
