"""`bench engine`: how fast the engine decodes and prefills, beside what the device's memory and matrix units allow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from flagrelease.bench.circumstances import Circumstances
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.roof import (
    cache_bytes,
    copy_bandwidth,
    distinct_experts,
    layer_bytes,
    matrix_rate,
    seconds,
    token_operations,
)
from flagrelease.bench.synthetic import random_model
from flagrelease.device import Device
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.model import Model
from flagrelease.engine.stepper import describe_steps


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What to measure.

    Attributes:
        name: of the dimensions.
        layers: None: all of them.
        experts: None: all of them.
        numerics: see `engine.numerics`.
        operators: see `engine.kernels.provider`.
        batches: rows that decode together.
        prompts: tokens of a prompt that is prefilled.
        context: tokens before those that are decoded.
        chunk: tokens that prefill appends in one step.
        steps: of decoding, that one time is the mean of.
    """

    name: str
    layers: int | None
    experts: int | None
    numerics: str
    operators: str
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    context: int
    chunk: int
    steps: int


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        phase: decode or prefill.
        size: rows, or tokens of the prompt.
        seconds: of a step, or of the prompt.
        rate: tokens a second, of all rows.
        needed: bytes that a step must read, or operations that a prompt needs.
        roof: tokens a second at the measured copy bandwidth, or matrix rate.
    """

    phase: str
    size: int
    seconds: float
    rate: float
    needed: float
    roof: float

    @property
    def share(self) -> float:
        """Of the roof."""
        return self.rate / self.roof


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Rates in bytes and operations a second; `decoding`: whether captured; `rows` in the order of the request."""

    circumstances: Circumstances
    request: EngineRequest
    decoding: str
    copy_bandwidth: float
    matrix_rate: float
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"rows": [asdict(row) | {"share": row.share} for row in self.rows]}


@torch.inference_mode()
def bench_engine(request: EngineRequest, device: Device) -> EngineReport:
    """Make a model of random weights and measure it.

    Raises:
        UsageError: dimensions or numerics that do not exist or go together.
        ResourceError: no room for the model or its caches.
    """
    circumstances, large = Circumstances.now(device), device.type != "cpu"
    bandwidth = copy_bandwidth(device, 2 << 30 if large else 16 << 20)
    operations = matrix_rate(device, 8192 if large else 256)
    config = dimensions(request.name, request.layers, request.experts)
    model = random_model(config, request.numerics, request.operators, device, request.chunk)
    rows = [_decode(model, device, request, batch, bandwidth) for batch in request.batches]
    rows += [_prefill(model, device, prompt, operations) for prompt in request.prompts]
    return EngineReport(circumstances, request, describe_steps(model), bandwidth, operations, tuple(rows))


def _decode(model: Model, device: Device, request: EngineRequest, batch: int, bandwidth: float) -> Row:
    """Rows that have `context` tokens behind them; what those were makes no difference to the time."""
    chunk, model.chunk = model.chunk, 1  # no prompt is prefilled, so that the ring is as short as in serving
    cache = model.new_cache(batch, request.context + 64)
    model.chunk = chunk
    decoder = Decoder(model, cache)
    decoder.tokens.random_(model.config.vocab_size)
    decoder.positions.fill_(request.context)
    step = seconds(device, lambda: decoder.step(batch, request.context), inner=request.steps)
    always, expert = layer_bytes(model)
    needed = always + expert * distinct_experts(model, batch) + batch * cache_bytes(model, request.context)
    return Row("decode", batch, step, batch / step, needed, bandwidth / needed * batch)


def _prefill(model: Model, device: Device, tokens: int, operations: float) -> Row:
    cache = model.new_cache(1, tokens)
    prompt = torch.randint(model.config.vocab_size, (tokens,)).tolist()

    def run() -> None:
        cache.free(0)
        model.prefill(cache, 0, prompt)

    time = seconds(device, run, repeats=2)
    needed = token_operations(model, tokens) * tokens
    return Row("prefill", tokens, time, tokens / time, needed, operations / needed * tokens)
