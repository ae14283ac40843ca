"""The engine's steps over a model of shapes alone: what they launch is what a chip would be given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.rooms import caches
from flagrelease.bench.synthetic import RandomTensors
from flagrelease.device import open_device
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.kernels.operators import OPERATORS
from flagrelease.engine.kernels.triton_operators import TritonOperators
from flagrelease.engine.kernels.weights import ExpertWeights
from flagrelease.engine.numerics import Numerics, choose_numerics
from flagrelease.engine.parallel import alone
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.reader import Reader
from flagrelease.engine.weights import TensorSource, Weights
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.model.v4.config import ModelConfig

LAYERS = 5  # of each kind, with hashed and with learned routing
CHUNK = 512
_BEHIND = 64  # positions behind the context


class ShapedTensors(RandomTensors):
    """Tensors that nobody writes to or reads: a computer gives them no memory."""

    def _whole(self, spec: TensorSpec) -> Tensor:
        if spec.storage is Storage.EXPERT and self._fp4:
            return torch.empty((*spec.shape[:-1], spec.shape[-1] // 2), dtype=torch.int8)
        if spec.storage in (Storage.LINEAR, Storage.EXPERT):
            return torch.empty(spec.shape, dtype=torch.float8_e4m3fn)
        plain = {Storage.F32: torch.float32, Storage.I64: torch.int64}
        return torch.empty(spec.shape, dtype=plain.get(spec.storage, torch.bfloat16))


class ShapedWeights(Weights):
    """Weights whose routed experts are made all at once: how many pairs of a token an expert has decides its tiles."""

    def __init__(self, source: TensorSource, numerics: Numerics, config: ModelConfig, prefix: str = "") -> None:
        """Of a model of `config`."""
        super().__init__(source, numerics, prefix)
        self._config = config

    def at(self, name: str) -> ShapedWeights:
        """The tensors under `name`."""
        return ShapedWeights(self._source, self.numerics, self._config, f"{self._prefix}{name}.")

    def experts(self, ids: range) -> ExpertWeights:
        """All in the format that the numerics keep, w1 and w3 side by side."""
        hidden, width = self._config.hidden_size, self._config.moe_intermediate_size
        (w1, s1), (w3, s3) = self._matrices(len(ids), 2, width, hidden)
        ((w2, s2),) = self._matrices(len(ids), 1, hidden, width)
        return ExpertWeights(w1, w3, w2, s1, s3, s2, ids.start)

    def _matrices(self, experts: int, each: int, rows: int, columns: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`each` matrices of every expert, [E, rows, columns], and their scales, which all experts share."""
        if not self.numerics.keep_codes:
            weights = torch.empty(experts, each, rows, columns, dtype=self.dtype)
            return ((one, None) for one in weights.unbind(1))
        if self.numerics.fp4:
            codes, scale = torch.empty(experts, each, rows, columns // 2, dtype=torch.int8), (rows, columns // 32)
        else:
            codes = torch.empty(experts, each, rows, columns, dtype=torch.float8_e4m3fn)
            scale = rows // 128, columns // 128
        scales = torch.full((1, each, *scale), 120, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        return zip(codes.unbind(1), scales.expand(experts, -1, -1, -1).unbind(1), strict=True)


class WatchedOperators(TritonOperators):
    """Every operator tells its name before it computes. No product is the vendor's, whose library is not here."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell`: called with the name."""
        for name in (*OPERATORS, "arrange_experts"):
            setattr(self, name, _telling(name, getattr(self, name), tell))

    @staticmethod
    def start_after_all() -> None:
        """No streams are here."""


def _telling(name: str, operator: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        tell(name)
        return operator(*args, **options)

    call.__module__, call.__name__ = operator.__module__, operator.__name__
    return call


@torch.inference_mode()
def run_steps(
    name: str, numerics: str, batches: tuple[int, ...], context: int, prompts: tuple[int, ...],
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Decode a token for each of `batches` rows after `context` tokens, and read prompts, as `serve` does.

    Args:
        name: of the dimensions.
        numerics: see `engine.numerics`.
        batches: rows of a step of decoding.
        context: tokens before it.
        prompts: tokens of each prompt; those above `CHUNK` are read whole, as long ones are.
        tell: called with the name of each operator before it launches.

    Raises:
        UsageError: dimensions or numerics that do not exist.
    """
    device = open_device("cpu", 0)
    config = dimensions(name, min(LAYERS, dimensions(name).num_hidden_layers))
    policy = choose_numerics(numerics, torch.bfloat16, config)
    tensors = ShapedTensors(config, torch.device("cpu"), alone(), fp4=policy.fp4 or not policy.keep_codes)
    model = Model.build(
        ShapedWeights(tensors, policy, config), config, policy, WatchedOperators(tell), alone(), device, mtp=False
    )
    for rows in batches:
        model.chunk = 1
        decoder = Decoder(model, caches(model, rows, context + _BEHIND))
        decoder.positions.fill_(context)
        decoder.step(rows, context)
    for tokens in prompts:
        model.chunk = max(CHUNK, tokens)
        Reader(model, caches(model, 1, tokens), fixed=tokens <= CHUNK).read(0, [[0] * tokens])
