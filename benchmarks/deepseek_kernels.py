"""Ours beside DeepSeek's and FlagGems' kernels: every operator at V4-Flash's shapes, in one process and one run.

    pip install tilelang tile-kernels flag_gems
    python benchmarks/deepseek_kernels.py --kernel DeepSeek-V4-Flash/inference/kernel.py [--processes 12] [--json FILE]

A time is that of one call in a captured graph of calls on SETS different sets of arguments, one after the other, so
that weights are not in L2 (unless those of all sets fit there). It is the median of REPEATS measurements of at least
5 ms. A peer is timed if its result is the definition's (relative error below 0.01); of two functions of one owner
the faster counts. Prints Markdown; copy it to benchmarks/kernels-peers_<device>_<date>.md. Triton and TileLang keep
what they compile: with --processes so many processes do that before anything is timed, and a function after which
the device refuses all work is found there and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peer_kernels import (
    FLAG_GEMS,
    KERNEL_PY,
    TILE_KERNELS,
    Peer,
    Peers,
    flag_gems_peers,
    kernel_py_peers,
    tile_kernels_peers,
)
from torch import Tensor

from flagrelease.bench.circumstances import Circumstances
from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.operator_cases import OperatorCase, bytes_read, operator_cases
from flagrelease.bench.roof import copy_bandwidth, seconds
from flagrelease.device import Device, open_device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.kernels.weights import ExpertWeights

OURS = "ours"
PEERS = (FLAG_GEMS, KERNEL_PY, TILE_KERNELS)
SETS, REPEATS = 32, 5
IN_PLACE = ("act_quant_roundtrip", "fp4_act_quant_roundtrip", "apply_rope")  # as the engine does
TOLERANCE = {"swiglu_quant": 0.03}  # FP8 of FP32 values or of BF16 values: a code in forty is the next one
USUAL_TOLERANCE = 0.01
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, KeyError)  # peers' ways to say no


@dataclass(slots=True)
class Row:
    """One operator at one shape. By `owner: function`: seconds; the relative error of the result; what is to be said.

    `parts`: those that do only a part of the operator.
    """

    operator: str
    what: str
    tokens: int
    floor: float
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)

    def fastest(self, owner: str, whole: bool) -> float | None:
        """The least time of an owner's functions that do all of the operator, or of those that do a part."""
        return min(
            (time for label, time in self.seconds.items()
             if label.partition(": ")[0] == owner and (label not in self.parts) == whole),
            default=None,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", type=Path, required=True, help="your copy of DeepSeek's inference/kernel.py")
    parser.add_argument("--tokens", type=lambda text: tuple(map(int, text.split(","))), default=(1, 16, 64, 1024))
    parser.add_argument("--processes", type=int, default=0, help="that compile first")
    parser.add_argument("--json", type=Path, help="also write the rows there, after each")
    args = parser.parse_args()
    broken = _compile(args.kernel, args.tokens, args.processes)
    device = open_device("cuda")
    peers = _peers(args.kernel)
    for operator, label in broken:
        print(f"{operator}: {label} ended its process with an error of the device: left out", file=sys.stderr)
        peers[operator] = [peer for peer in peers[operator] if peer.label != label]
    document = _document(args.kernel, device)
    rows: list[Row] = []
    with torch.no_grad():
        for sets in _cases(device, args.tokens, SETS):
            rows.append(_measure(sets, peers, device, document["copy_bandwidth"]))
            if args.json is not None:
                args.json.write_text(json.dumps(document | {"rows": [asdict(row) for row in rows]}, indent=1))
    print(_markdown(document, rows))


def _document(kernel: Path, device: Device) -> dict[str, Any]:
    return asdict(Circumstances.now(device)) | {
        "kernel_py": hashlib.sha256(kernel.read_bytes()).hexdigest(),
        "packages": {name: version(name) for name in ("tilelang", "tile_kernels", "flag_gems")},
        "copy_bandwidth": copy_bandwidth(device, 2 << 30),
    }


def _peers(kernel: Path) -> Peers:
    """By operator, ours not among them."""
    tables = (flag_gems_peers(), kernel_py_peers(kernel), tile_kernels_peers())
    return {name: list(chain(*(table.get(name, ()) for table in tables))) for name in set().union(*tables)}


def _compile(kernel: Path, tokens: tuple[int, ...], processes: int) -> set[tuple[str, str]]:
    """Call everything once, each case in one of the processes: what they compile stays in the compilers' caches.

    Returns operators and labels of peers after which the device refused all further work of the process.
    """
    if not processes:
        return set()
    works = [(kernel, tokens, part, processes) for part in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return {broken for broken in pool.starmap(_compile_part, works) if broken is not None}


@torch.no_grad()
def _compile_part(kernel: Path, tokens: tuple[int, ...], part: int, parts: int) -> tuple[str, str] | None:
    device, peers = open_device("cuda"), _peers(kernel)
    for index, (case,) in enumerate(_cases(device, tokens, 1)):
        if index % parts == part:
            for peer in (_ours(case, device), *peers.get(case.operator, ())):
                if _breaks(peer, case, device):
                    return case.operator, peer.label
    return None


def _breaks(peer: Peer, case: OperatorCase, device: Device) -> bool:
    try:
        with suppress(*REFUSALS):  # told when it is timed
            peer.call(*peer.prepare(*case.arguments))
        device.synchronize()
    except torch.AcceleratorError:
        return True
    return False


def _cases(device: Device, tokens: Iterable[int], sets: int) -> Iterator[tuple[OperatorCase, ...]]:
    """Each operator at each shape, with as many sets of arguments."""
    config, place = dimensions("flash"), torch.device(device.torch_device)
    for count in tokens:
        yield from zip(*(operator_cases(config, place, count) for _ in range(sets)), strict=True)
        yield from zip(*(_more_cases(place, count) for _ in range(sets)), strict=True)


def _more_cases(device: torch.device, tokens: int) -> Iterator[OperatorCase]:
    """Operators that kernel.py or tile_kernels have and `bench kernels` has not."""
    hidden, inter, heads, dim, kept = 4096, 2048, 64, 512, 448

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).bfloat16()

    def case(operator: str, what: str, *arguments: Any) -> OperatorCase:
        return OperatorCase(operator, what, tokens, arguments, bytes_read(operator, arguments))

    yield case("act_quant_roundtrip", "latents", randn(tokens, kept), 64)
    yield case("swiglu_quant", "shared", randn(tokens, inter), randn(tokens, inter), 10.0)
    codes = torch.randint(256, (inter, hidden // 2), dtype=torch.uint8, device=device)
    scales = torch.full((inter, hidden // 32), 120, dtype=torch.uint8, device=device).view(torch.float8_e8m0fnu)
    x, xs = randn(tokens, hidden).to(torch.float8_e4m3fn), torch.ones(tokens, hidden // 128, device=device)
    yield case("fp4_linear", "an expert's w1", x, xs, codes, scales)
    idx = torch.randint(160, (1, tokens, 160), dtype=torch.int32, device=device)
    q, kv, sink = randn(1, tokens, heads, dim), randn(1, 4096, dim), torch.randn(heads, device=device)
    yield case("sparse_attention", "160 keys", q, kv, sink, idx, dim**-0.5)


def _ours(case: OperatorCase, device: Device) -> Peer:
    return _provider("auto", case, device)


def _provider(name: str, case: OperatorCase, device: Device) -> Peer:
    """The operator of one of our providers."""
    ops = load_provider(name, torch.device(device.torch_device))
    function = getattr(ops, case.operator)
    if case.operator in IN_PLACE:
        return Peer(OURS, case.operator, lambda x, *rest: function(x, *rest, out=x))
    return Peer(OURS, case.operator, function, lambda *arguments: tuple(_arranged(ops, part) for part in arguments))


def _arranged(ops: Operators, argument: Any) -> Any:
    """Experts in the provider's order, which may be made in place: of a copy."""
    if not isinstance(argument, ExpertWeights):
        return argument
    w1, w3 = torch.stack((argument.w1, argument.w3), 1).unbind(1)
    return ops.arrange_experts(replace(argument, w1=w1, w3=w3, w2=argument.w2.clone()))


def _measure(sets: tuple[OperatorCase, ...], peers: Peers, device: Device, bandwidth: float) -> Row:
    case = sets[0]
    result = _called(_provider("torch", case, device), case)
    row = Row(case.operator, case.what, case.tokens, case.moved(result) / bandwidth)
    expected = _comparable(case.operator, result)
    candidates = (_ours(case, device), *peers.get(case.operator, ()))
    # All are compared before any is timed: what is timed may write over its arguments.
    for peer in [peer for peer in candidates if _agrees(peer, case, expected, row)]:
        _time(peer, sets, device, row)
    return row


def _agrees(peer: Peer, case: OperatorCase, expected: list[Tensor], row: Row) -> bool:
    """Whether it gives the definition's result; the row says so if not."""
    label = peer.label
    if peer.computes:
        row.remarks[label] = peer.computes
    if not peer.whole:
        row.parts.append(label)
    if not peer.compared:
        return True
    try:
        error = _difference(_comparable(case.operator, _called(peer, case)), expected)
    except REFUSALS as refusal:
        row.remarks[label] = f"refuses: {_first_line(refusal)}"
        return False
    row.errors[label] = error
    if not error < TOLERANCE.get(case.operator, USUAL_TOLERANCE):  # NaN is none either
        row.remarks[label] = f"not a peer: differs from the definition by {error:.2g}"
        return False
    return True


def _called(peer: Peer, case: OperatorCase) -> Any:
    """The result for copies of the arguments, since some write over theirs."""
    copies = (
        torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device=part.device).copy_(part)
        if isinstance(part, Tensor) else part
        for part in case.arguments
    )  # fmt: skip
    return peer.call(*peer.prepare(*copies))


def _comparable(operator: str, result: Any) -> list[Tensor]:
    """What different codings of the same result have in common."""
    parts = [part.clone() for part in (result if isinstance(result, tuple) else (result,))]
    if operator in ("act_quant", "swiglu_quant"):
        codes, scales = parts
        return [codes.float().unflatten(-1, (-1, 128)) * scales.float()[..., None]]
    if operator == "topk_visible":
        return [parts[0].sort(-1).values.float()]
    return [part.float() for part in parts]


def _difference(parts: list[Tensor], expected: list[Tensor]) -> float:
    """The worst relative error, ||part - expected|| / ||expected||."""
    pairs = zip(parts, expected, strict=True)
    return max(float((a.reshape(b.shape) - b).norm() / b.norm()) for a, b in pairs)


def _time(peer: Peer, sets: tuple[OperatorCase, ...], device: Device, row: Row) -> None:
    label = peer.label
    prepared = [peer.prepare(*case.arguments) for case in sets]

    def work() -> None:
        for arguments in prepared:
            peer.call(*arguments)

    try:
        replay = device.capture(work)
        once = seconds(device, replay, repeats=1)
        row.seconds[label] = seconds(device, replay, REPEATS, inner=max(1, int(5e-3 / once))) / len(sets)
    except REFUSALS as error:
        row.remarks[label] = f"refuses: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


def _markdown(document: dict[str, Any], rows: list[Row]) -> str:
    owners = (OURS, *PEERS)
    lines = [
        *(f"- {key}: {value}" for key, value in document.items()),
        "",
        "Microseconds a call. x: the fastest peer's time over ours. In parentheses: only a part of the operator.",
        "",
        f"| operator | of | tokens | {' | '.join(owners)} | x | floor |",
        f"|---|---|---|{'---|' * (len(owners) + 2)}",
    ]
    for row in rows:
        times = " | ".join(_cell(row, owner) for owner in owners)
        ratio = _ratio(row)
        shown = "–" if ratio is None else f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"
        lines.append(f"| {row.operator} | {row.what} | {row.tokens} | {times} | {shown} | {row.floor * 1e6:.2f} |")
    remarks = {f"{row.operator}: {label}: {text}" for row in rows for label, text in row.remarks.items()}
    return "\n".join([*lines, "", *(f"- {remark}" for remark in sorted(remarks))])


def _cell(row: Row, owner: str) -> str:
    whole, part = row.fastest(owner, whole=True), row.fastest(owner, whole=False)
    if whole is not None:
        return f"{whole * 1e6:.2f}"
    return "–" if part is None else f"({part * 1e6:.2f})"


def _ratio(row: Row) -> float | None:
    """The fastest peer's time over ours."""
    own = row.fastest(OURS, whole=True)
    times = [time for owner in PEERS if (time := row.fastest(owner, whole=True)) is not None]
    return min(times) / own if times and own is not None else None


if __name__ == "__main__":
    main()
