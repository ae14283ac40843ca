"""`bench engine`: how fast the engine decodes and prefills, beside what the device's memory and matrix units allow.

Over ranks the roof is that of one of them: the bytes and operations of the rank that has most, at the rates of the
slowest device. The links between them are not in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from flagrelease.bench.circumstances import Circumstances
from flagrelease.bench.collectives import collective_seconds
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.drafting import DraftRow, measure_drafts
from flagrelease.bench.roof import (
    cache_bytes,
    copy_bandwidth,
    distinct_experts,
    layer_bytes,
    matrix_rate,
    seconds,
    token_operations,
)
from flagrelease.bench.rooms import SequenceRoom, caches, rooms
from flagrelease.bench.synthetic import random_model
from flagrelease.device import Device
from flagrelease.engine.agreement import require_same_options
from flagrelease.engine.control import gather_bytes, open_control
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.stepper import describe_steps, passes_are_captured
from flagrelease.engine.parallel import Groups, alone, join_groups, leave_job, start_job
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.reader import Reader
from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.v4.config import ModelConfig

T = TypeVar("T")
BEHIND = 64  # tokens for which a cache has room behind the context


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
        contexts: tokens before those that are decoded.
        chunk: tokens that prefill appends in one step.
        steps: of decoding, that one time is the mean of.
        drafts: the draft stages whose cost is measured too: `mtp` or `dspark`; None: none.
    """

    name: str
    layers: int | None
    experts: int | None
    numerics: str
    operators: str
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    chunk: int
    steps: int
    drafts: str | None = None


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One measurement.

    Attributes:
        phase: decode or prefill.
        size: rows, or tokens of the prompt.
        context: tokens before those that are decoded; of a prompt 0.
        seconds: of a step, or of the prompt.
        collectives: of these seconds, what the ranks' collectives take alone.
        rate: tokens a second, of all rows.
        needed: bytes that a step must read, or operations that a prompt needs; over ranks of the one that has most.
        roof: tokens a second at the measured copy bandwidth, or matrix rate.
    """

    phase: str
    size: int
    context: int
    seconds: float
    collectives: float
    rate: float
    needed: float
    roof: float

    @property
    def share(self) -> float:
        """Of the roof."""
        return self.rate / self.roof


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second that a device copies, operations a second that it multiplies with."""

    copy_bandwidth: float
    matrix_rate: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What was measured.

    Attributes:
        circumstances: the first rank's.
        request: what was asked for.
        decoding: whether steps are captured.
        copy_bandwidths: bytes a second, of every rank's device.
        matrix_rates: operations a second, of every rank's device.
        rooms: of sequences of several lengths.
        rows: in the order of the request.
        left_out: what was not measured, and why.
        drafts: what speculation costs, in the order of the request.
    """

    circumstances: Circumstances
    request: EngineRequest
    decoding: str
    copy_bandwidths: tuple[float, ...]
    matrix_rates: tuple[float, ...]
    rooms: tuple[SequenceRoom, ...]
    rows: tuple[EngineRow, ...]
    left_out: tuple[str, ...]
    drafts: tuple[DraftRow, ...] = ()

    @property
    def rates(self) -> Rates:
        """What roofs are made of."""
        return Rates(min(self.copy_bandwidths), min(self.matrix_rates))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        rows = [asdict(row) | {"share": row.share} for row in self.rows]
        drafts = [asdict(row) | {"ratio": row.ratio, "break_even": row.break_even} for row in self.drafts]
        more = {"ranks": len(self.matrix_rates), "rows": rows, "drafts": drafts}
        return asdict(self) | asdict(self.rates) | more


@torch.inference_mode()
def bench_engine(request: EngineRequest, device: Device) -> EngineReport | None:
    """Make a model of random weights and measure it: under torchrun one that is cut over the job's ranks.

    Returns:
        What was measured; None on ranks that do not lead.

    Raises:
        UsageError: dimensions or numerics that do not exist or go together, or are not cut over so many ranks; a
            context or a prompt that the model does not take.
        ResourceError: no room for the model.
    """
    circumstances, large = Circumstances.now(device), device.type != "cpu"
    start_job(device)
    config = dimensions(request.name, request.layers, request.experts, dspark=request.drafts == "dspark")
    _require_lengths(request, config)
    control = open_control()
    require_same_options(control, asdict(request))
    groups = join_groups(config, "split", control) if dist.is_initialized() else alone()
    _say(groups, _plan(request, device))
    own = Rates(copy_bandwidth(device, 2 << 30 if large else 16 << 20), matrix_rate(device, 8192 if large else 256))
    every = _of_all(control, own)
    model = random_model(
        config, request.numerics, request.operators, device, request.chunk,
        mtp=request.drafts is not None, groups=groups,
    )  # fmt: skip
    report = EngineReport(
        circumstances, request, describe_steps(model), tuple(rates.copy_bandwidth for rates in every),
        tuple(rates.matrix_rate for rates in every), rooms(model), (), (),
    )  # fmt: skip
    rows, drafts, left_out = list[EngineRow](), list[DraftRow](), list[str]()

    def measure(what: str, work: Callable[[], T], done: list[T]) -> None:
        _say(groups, what)
        try:
            done.append(work())
        except ResourceError as error:
            left_out.append(f"{what}: {error}")
            _say(groups, f"left out: {error}")

    for context, batch in product(request.contexts, request.batches):
        decode = partial(measure_decode, model, request.steps, batch, context, report.rates)
        measure(f"decoding {batch} row(s) after {context} tokens, {request.steps} steps at a time", decode, rows)
    if request.drafts is not None:
        for context, batch in product(request.contexts, request.batches):
            cost = partial(measure_drafts, model, request.steps, batch, context, BEHIND)
            measure(f"drafting for {batch} row(s) after {context} tokens, and verifying that", cost, drafts)
    for prompt in request.prompts:
        measure(f"reading a prompt of {prompt} tokens", partial(measure_prefill, model, prompt, report.rates), rows)
    leave_job()
    if not groups.is_leader:
        return None
    return replace(report, rows=tuple(rows), left_out=tuple(left_out), drafts=tuple(drafts))


def _require_lengths(request: EngineRequest, config: ModelConfig) -> None:
    """Refuse what the model does not take before anything is made: the last length of a list comes after hours."""
    for option, lengths, more in (("--context", request.contexts, BEHIND), ("--prompt", request.prompts, 0)):
        longest = config.max_position_embeddings - more
        if max(lengths, default=0) > longest:
            raise UsageError(f"{option} {max(lengths)}: {request.name} dimensions allow at most {longest} tokens there")


def _of_all(control: dist.ProcessGroup | None, own: Rates) -> list[Rates]:
    """Every rank's rates, in the order of ranks."""
    if control is None:
        return [own]
    return [Rates(**json.loads(each)) for each in gather_bytes(control, json.dumps(asdict(own)).encode())]


def _say(groups: Groups, text: str) -> None:
    """Tell the user on stderr what is being done, once for all ranks."""
    if groups.is_leader:
        print(f"bench engine: {text}", file=sys.stderr, flush=True)


def _plan(request: EngineRequest, device: Device) -> str:
    """What will be measured, and on a CPU why it is slow."""
    kinds = 1 if request.drafts is None else 2
    count = kinds * len(request.contexts) * len(request.batches) + len(request.prompts)
    text = (
        f"a random model of {request.name} dimensions, {request.numerics} numerics, on {device.name}; "
        f"{count} measurements, each after a run to warm up"
    )
    if device.type == "cpu":
        text += (
            ". A CPU runs the operators' definitions in torch, which are written to be read, not to be fast: the "
            "figures say nothing about an accelerator, and only --dimensions tiny with few --batch and short --prompt "
            "takes less than minutes"
        )
    return text


def measure_decode(model: Model, steps: int, batch: int, context: int, rates: Rates) -> EngineRow:
    """Rows that have `context` tokens behind them; what those were makes no difference to the time."""
    chunk, model.chunk = model.chunk, 1  # no prompt is prefilled, so that the ring is as short as in serving
    try:
        cache = caches(model, batch, context + BEHIND)
    finally:
        model.chunk = chunk

    def decoder_of(model: Model) -> Decoder:
        decoder = Decoder(model, cache)
        decoder.tokens.copy_(torch.tensor(_tokens(model, batch)))
        decoder.positions.fill_(context)
        return decoder

    decoder = decoder_of(model)
    step = seconds(model.device, lambda: decoder.step(batch, context), inner=steps)
    decoder.forget()
    collectives = collective_seconds(model, lambda model: decoder_of(model).step(batch, context))
    always, expert = layer_bytes(model)
    needed = always + expert * distinct_experts(model, batch) + batch * cache_bytes(model, context)
    roof = rates.copy_bandwidth / needed * batch
    return EngineRow("decode", batch, context, step, collectives, batch / step, needed, roof)


def measure_prefill(model: Model, tokens: int, rates: Rates) -> EngineRow:
    """A prompt of so many tokens, read into an empty cache; on every rank alike."""
    cache = caches(model, 1, tokens)
    prompt = _tokens(model, tokens)

    def run(model: Model, reader: Reader) -> None:
        """As the scheduler reads a prompt."""
        cache.free(0)
        for begin in range(0, tokens, cache.chunk):
            streams, _ = reader.read(0, [prompt[begin : begin + cache.chunk]])
        model.read_out(streams[0, -1])

    reader = Reader(model, cache, fixed=passes_are_captured(model))
    time = seconds(model.device, lambda: run(model, reader), repeats=2)
    reader.forget()
    collectives = collective_seconds(model, lambda model: run(model, Reader(model, cache, fixed=False)))
    needed = token_operations(model, tokens) * tokens
    roof = rates.matrix_rate / needed * tokens
    return EngineRow("prefill", tokens, 0, time, collectives, tokens / time, needed, roof)


def _tokens(model: Model, count: int) -> list[int]:
    """Random ones, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    tokens: list[int] = torch.randint(model.config.vocab_size, (count,), generator=generator).tolist()
    return tokens
