"""`bench kernels`: each operator of the forward pass at a model's shapes, by each provider that is installed.

FlagGems' operators are timed as the provider `flag_gems` calls them. DeepSeek's TileLang kernels, of which the user
brings a copy, are timed beside ours and FlagGems' by benchmarks/deepseek_kernels.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from flagrelease.bench.circumstances import Circumstances
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.operator_cases import OperatorCase, operator_cases
from flagrelease.bench.roof import copy_bandwidth, seconds
from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.kernels.weights import ExpertWeights

_PROVIDERS = ("torch", "auto", "flag_gems")


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One operator. `seconds` by provider (torch: the definition); `floor`: its bytes over the copy bandwidth."""

    operator: str
    what: str
    tokens: int
    seconds: dict[str, float]
    floor: float


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """What to measure: the shapes of the dimensions called `name`, for each number of tokens in a call."""

    name: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Of one run.

    Attributes:
        absent: provider -> why it was not timed.
        calls: whether those of the providers other than torch were captured.
        copy_bandwidth: in bytes a second.
    """

    circumstances: Circumstances
    request: KernelRequest
    absent: dict[str, str]
    calls: str
    copy_bandwidth: float
    rows: tuple[KernelRow, ...]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@torch.inference_mode()
def bench_kernels(request: KernelRequest, device: Device) -> KernelReport:
    """Time every operator for each number of tokens.

    Raises:
        UsageError: dimensions that do not exist.
        ResourceError: no room, or a provider that does not load.
    """
    circumstances = Circumstances.now(device)
    config, place = dimensions(request.name), torch.device(device.torch_device)
    absent = absent_providers(device)
    bandwidth = copy_bandwidth(device, 16 << 20 if device.type == "cpu" else 2 << 30)
    providers = [load_provider(provider, place) for provider in _PROVIDERS if provider not in absent]
    rows = tuple(
        _row(case, providers, device, bandwidth)
        for count in request.tokens
        for case in operator_cases(config, place, count)
    )
    return KernelReport(circumstances, request, absent, device.capturing, bandwidth, rows)


def absent_providers(device: Device) -> dict[str, str]:
    """Those that cannot be timed there, and why."""
    if device.type == "cpu":
        return dict.fromkeys(_PROVIDERS[1:], "a CPU computes by the definitions")
    return {} if importlib.util.find_spec("flag_gems") else {"flag_gems": "the package flag_gems is not installed"}


def _row(case: OperatorCase, providers: list[Operators], device: Device, bandwidth: float) -> KernelRow:
    """The first provider has the definitions. One whose operator is another's in the list is not timed again."""
    times: dict[str, float] = {}
    seen: set[str] = set()
    for ops in providers:
        function = ops.describe()[case.operator]
        if function not in seen:
            seen.add(function)
            times[ops.name] = _time(ops, case, device)
    moved = case.moved(getattr(providers[0], case.operator)(*case.arguments))
    return KernelRow(case.operator, case.what, case.tokens, times, moved / bandwidth)


def _time(ops: Operators, case: OperatorCase, device: Device) -> float:
    """Replays of a captured call; the definitions, some of which wait for the device, are called."""
    operator = getattr(ops, case.operator)
    arguments = tuple(ops.arrange_experts(_copy(a)) if isinstance(a, ExpertWeights) else a for a in case.arguments)
    call: Callable[[], None] = lambda: operator(*arguments)  # noqa: E731
    if not ops.captured:
        return seconds(device, call, repeats=2)
    replay = device.capture(call)
    return seconds(device, replay, repeats=3, inner=20)


def _copy(experts: ExpertWeights) -> ExpertWeights:
    """What a provider may put in another order."""
    w1, w3 = torch.stack((experts.w1, experts.w3), 1).unbind(1)
    return replace(experts, w1=w1, w3=w3, w2=experts.w2.clone())
