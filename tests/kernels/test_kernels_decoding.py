"""The fused operators of decoding against their definitions, and definitions against the plain forward pass's.

Results and what the operators write in place are compared alike.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from coded_cases import CODED_CASES
from decoding_cases import DECODING_CASES, WRITTEN
from kernel_cases import Case, streams
from kernel_comparison import assert_same, poisoned
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.quantisation.fp4_codes import arrange_experts
from flagrelease.engine.kernels.reference.key_rows import unpack_index_keys, unpack_keys
from flagrelease.engine.kernels.triton_operators import TritonOperators
from flagrelease.engine.kernels.weights import ExpertWeights

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# operator -> the argument that says where each row's token goes, or how much it sees
POSITIONS = {
    "best_visible": 1,
    "choose_entries": 3,
    "compress_token": 7,
    "decode_attention": 4,
    "gate_route": 2,
    "gate_route_hashed": 3,
    "index_queries": 3,
    "latents": 6,
}
# What is one of the model's roundings away from a result in parts or behind it, by the dtype of the case.
AFTER_ROUNDING = {
    "hc_pre_norm",
    "hc_post_mixes",
    "latents",
    "compress_token",
    "compress_windows",
    "index_queries",
    "decode_attention",
    "round_parts",
    "swiglu_parts",
    "swiglu_quant",
}


def call(operators: Any, case: Case, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The results, parts added up, and the arguments that were written to."""
    return read(case, *run(operators, case, arguments))


def run(operators: Any, case: Case, arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What the operator gives, and its arguments, in which copies stand for what it writes to."""
    copies = tuple(a.clone() if isinstance(a, Tensor) and i in WRITTEN.get(case.operator, ()) else a
                   for i, a in enumerate(arguments))  # fmt: skip
    return getattr(operators, case.operator)(*copies), copies


def read(case: Case, result: Any, copies: tuple[Any, ...]) -> tuple[Any, ...]:
    """See `call`."""
    results = result if isinstance(result, tuple) else (result,)
    if case.operator.endswith("_parts") and case.operator.startswith(("linear", "fp8")):
        results = (results[0].sum(0),)
    if (
        case.operator == "decode_attention" and results[1] is not None
    ):  # a sum may fall on either side of a power of two
        results = (results[0].float() * results[1].repeat_interleave(128, -1),)
    if case.operator in ("best_visible", "choose_entries"):  # in any order, but what is not there comes last
        there = (results[0] >= 0).int()
        results = (results[0].sort(-1).values, there == there.sort(-1, descending=True).values)
    if case.operator in ("hc_mixes", "hc_post_mixes"):
        results = (*results[:-2], results[-2].sum(0), results[-1].sum(0))
    written = tuple(numbers(case.operator, copies, i) for i in WRITTEN.get(case.operator, ()))
    return *(r for r in results if isinstance(r, Tensor)), *written


def numbers(operator: str, arguments: tuple[Any, ...], place: int) -> Tensor:
    """An argument that was written to; keys of codes as what they stand for: a sum beside a tie moves a whole scale."""
    x: Tensor = arguments[place]
    if x.dtype != torch.uint8:
        return x
    if operator == "latents":
        return unpack_keys(x, len(arguments[2]))
    return (unpack_keys if arguments[-1] == "fp8" else unpack_index_keys)(x, len(arguments[3]))


def arranged(case: Case, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """With experts as the model's loader arranges them for the kernels."""
    if not case.label.endswith("bfloat16"):
        return arguments
    return tuple(arrange_experts(deepcopy(a)) if isinstance(a, ExpertWeights) else a for a in arguments)


def compare(case: Case, arguments: tuple[Any, ...], actual: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    rows = given_rows(case, arguments)
    for a, e in zip(actual, expected, strict=True):
        if rows is not None and len(a) == len(rows):
            a, e = a[rows], e[rows]
        assert a.shape == e.shape
        if not e.numel():
            continue
        if e.dtype == torch.float8_e4m3fn or case.operator in AFTER_ROUNDING:
            assert_nearly_all_same(a, e)
        else:
            assert_same(a, e, "moe_experts" if case.operator == "expert_outputs" else case.operator)


def assert_nearly_all_same(actual: Tensor, expected: Tensor) -> None:
    """A sum on the other side of a tie moves a value by one step of its format: few may, and none by more."""
    a, e = actual.double(), expected.double()
    assert torch.equal(a.isinf(), e.isinf())
    a, e = a.nan_to_num(0, 0, 0), e.nan_to_num(0, 0, 0)
    assert (a - e).norm() <= 4e-3 * e.norm()
    assert (a - e).abs().max() <= e.abs().max() / 4


def given_rows(case: Case, arguments: tuple[Any, ...]) -> Tensor | None:
    """The rows that have a token: results of the others mean nothing."""
    place = POSITIONS.get(case.operator)
    return None if place is None or case.operator == "compress_token" else (arguments[place] >= 0).cpu()


def _ids(case: Case) -> str:
    return f"{case.operator}: {case.label}"


def _long(case: Case) -> bool:
    """Up to 37 s in the interpreter, where others show the same; on a GPU all run."""
    if case.operator == "decode_attention":
        return case.label == "many rows float32"
    return case.operator == "expert_outputs" and (
        case.label.startswith("fp4 many") or (case.label.endswith("float32") and case.label != "plain float32")
    )


EACH = [
    pytest.param(case, id=_ids(case), marks=pytest.mark.slow if _long(case) else [])
    for case in [*DECODING_CASES, *CODED_CASES]
]


@pytest.mark.parametrize("case", EACH)
def test_kernel_gives_what_the_definition_gives(case: Case, device: torch.device) -> None:
    arguments = case.arguments(device)
    expected = call(reference, case, arguments)
    with poisoned():
        actual = call(TritonOperators, case, arranged(case, arguments))
    compare(case, arguments, actual, expected)


@pytest.mark.parametrize("operator", POSITIONS)
def test_positions_with_gaps_are_refused(operator: str, device: torch.device) -> None:
    """Two tokens of one row are apart in what holds more rows: a kernel would take another row's."""
    case = next(case for case in DECODING_CASES if case.operator == operator)
    arguments, place = list(case.arguments(device)), POSITIONS[operator]
    arguments[place] = arguments[place].repeat_interleave(3)[::3]
    with pytest.raises(ValueError, match="lie side by side"):
        getattr(TritonOperators, operator)(*arguments)


def test_rows_that_have_not_as_many_tokens_are_refused(device: torch.device) -> None:
    for operator, label, cache in (("latents", "several", 7), ("decode_attention", "6 each", 1)):
        case = next(c for c in DECODING_CASES if (c.operator, c.label) == (operator, f"{label} bfloat16"))
        arguments = list(case.arguments(device))
        arguments[cache] = torch.cat([arguments[cache]] * 3)[:5]
        with pytest.raises(ValueError, match="rows of a cache: all rows have as many"):
            getattr(TritonOperators, operator)(*arguments)


def test_a_compressor_without_spare_slots_for_a_step_is_refused(device: torch.device) -> None:
    """A program would overwrite what another one of the same step pools."""
    case = next(c for c in DECODING_CASES if (c.operator, c.label) == ("compress_token", "several bfloat16"))
    arguments = list(case.arguments(device))
    for pending in (8, 9):
        arguments[pending] = arguments[pending][:, 1:].contiguous()
    with pytest.raises(ValueError, match="24 tokens of 4 rows at once, which pool 8 of 12 slots"):
        TritonOperators.compress_token(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*DECODING_CASES, *CODED_CASES], ids=_ids)
def test_a_captured_kernel_gives_the_same(case: Case, gpu: torch.device) -> None:
    arguments = arranged(case, case.arguments(gpu))
    expected = call(TritonOperators, case, arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(TritonOperators, case, arguments)
    graph.replay()
    compare(case, arguments, read(case, *captured), expected)


def test_arranged_experts_are_for_their_own_kernels(device: torch.device) -> None:
    case = next(c for c in DECODING_CASES if (c.operator, c.label) == ("expert_outputs", "fp4 float32"))
    x, _, _, ids, weights, experts, *rest = case.arguments(device)
    arranged = arrange_experts(experts)
    with pytest.raises(ValueError, match="BF16 activations"):
        TritonOperators.expert_outputs(x, None, None, ids, weights, arranged, *rest)
    with pytest.raises(ValueError, match="another provider"):
        reference.expert_outputs(x, None, None, ids, weights, arranged, *rest)


@pytest.mark.parametrize("quantise", [False, True])
def test_mixes_give_what_hc_pre_gives(quantise: bool) -> None:
    x, fn, scale, base = streams(3, 4, 256, torch.float32, 24)
    expected, *weights = reference.hc_pre(x, fn, scale, base, 20, 1e-6, 1e-5)
    mixes, norm = reference.hc_mixes(x, fn), torch.rand(256)
    y, codes, scales = reference.hc_pre_norm(x, *mixes, scale, base, 1e-6, 1e-5, norm, quantise)
    expected = reference.rms_norm(expected, norm, 1e-5)
    assert torch.allclose(y, expected)
    assert_same(reference.hc_weights(x, *mixes, scale, base, 20, 1e-6, 1e-5), tuple(weights))
    if quantise:
        assert_same((codes, scales), reference.act_quant(y))
    else:
        assert (codes, scales) == (None, None)


PLANTED: list[tuple[str, str, Callable[[tuple[Any, ...]], tuple[Any, ...]]]] = [
    ("latents", "parts bfloat16", lambda a: (*a[:6], a[6] + 1, *a[7:])),
    ("latents", "parts bfloat16", lambda a: (*a[:8], a[8] + 1, *a[9:])),
    ("compress_token", "ratio 4 bfloat16", lambda a: (*a[:7], a[7] - (a[7] > 0).long(), *a[8:])),
    ("compress_token", "index bfloat16", lambda a: (*a[:11], "hadamard")),
    ("compress_windows", "open windows bfloat16", lambda a: (*a[:2], a[2].roll(1, 0), *a[3:])),
    ("compress_windows", "open windows bfloat16", lambda a: (*a[:5], a[5].flip(0), *a[6:])),
    ("compress_windows", "ratio 4 bfloat16", lambda a: (*a[:6], a[6].clamp(min=1), *a[7:])),
    ("compress_windows", "no window bfloat16", lambda a: (*a[:7], a[7].clamp(max=3), *a[8:])),
    ("latents", "codes", lambda a: (*a[:6], a[6] + 1, *a[7:])),
    ("compress_token", "codes", lambda a: (*a[:7], a[7] - (a[7] > 0).long(), *a[8:])),
    ("compress_token", "index codes", lambda a: (*a[:7], a[7] - 4, *a[8:])),
    ("decode_attention", "codes", lambda a: (a[0], a[1] ^ 1, *a[2:])),
    ("choose_entries", "codes", lambda a: (a[0], a[1] ^ 8, *a[2:])),
    ("decode_attention", "window bfloat16", lambda a: (*a[:8], a[8] - 1, *a[9:])),
    ("decode_attention", "block bfloat16", lambda a: (*a[:14], None)),
    ("decode_attention", "prefix bfloat16", lambda a: (*a[:9], a[9] * 2, *a[10:])),
    ("hc_weights", "4 streams bfloat16", lambda a: (*a[:5], a[5] - 19, *a[6:])),
    ("hc_pre_norm", "4 streams bfloat16", lambda a: (a[0], a[1][1:], *a[2:])),
    ("hc_post_mixes", "parts bfloat16", lambda a: (*a[:3], a[3].mT.contiguous(), a[4])),
    ("index_queries", "rounded bfloat16", lambda a: (*a[:4], False)),
    ("best_visible", "ties", lambda a: (a[0] + torch.arange(41) * 1e-4, *a[1:])),
    ("best_visible", "fewer than k", lambda a: (a[0], a[1] + 1, a[2])),
    ("best_visible", "all equal", lambda a: (a[0] + torch.arange(5000) * 1e-6, *a[1:])),
    ("choose_entries", "two levels bfloat16", lambda a: (*a[:3], a[3] + 1, a[4])),
    ("round_parts", "codes bfloat16", lambda a: (a[0][1:], *a[1:])),
]


@pytest.mark.parametrize(("operator", "label", "change"), PLANTED)
def test_planted_defects_are_caught(
    operator: str, label: str, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> None:
    case = next(c for c in [*DECODING_CASES, *CODED_CASES] if (c.operator, c.label) == (operator, label))
    arguments = case.arguments(torch.device("cpu"))
    with pytest.raises(AssertionError):
        compare(case, arguments, call(reference, case, change(arguments)), call(reference, case, arguments))
