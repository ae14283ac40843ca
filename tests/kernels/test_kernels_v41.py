"""Operators that only DeepSeek-V4.1 has: kernels against definitions, in the interpreter and on a GPU, and emulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import Case
from kernel_comparison import assert_same, poisoned
from test_kernels_emulation import _results, _same_bits
from torch_operations import MEMORY_AND_SHAPE, Recorder
from v41_cases import V41_CASES, v41_flash_cases

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.emulated_operators import emulating
from flagrelease.engine.kernels.operators import V41_OPERATORS, Operators
from flagrelease.engine.kernels.reference import v41
from flagrelease.engine.kernels.reference.experts import sum_experts
from flagrelease.engine.kernels.triton_operators import TritonOperators

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
OF_FP8 = [
    case for case in V41_CASES if f"{case.operator}: {case.label}" in ("engram_rows: codes", "fp8_linear_32: parts")
]


def _ids(case: Case) -> str:
    return f"{case.operator}: {case.label}"


def test_every_operator_has_a_case_and_a_kernel() -> None:
    assert {case.operator for case in V41_CASES} == set(V41_OPERATORS)
    assert not [name for name in V41_OPERATORS if getattr(TritonOperators, name) is getattr(Operators, name)]


# In FP32 the same experts again, up to 1 s each in the interpreter; on a GPU all run.
EACH = [
    pytest.param(
        case,
        id=_ids(case),
        marks=pytest.mark.slow if case.label.endswith("float32") and "experts" in case.operator else [],
    )
    for case in V41_CASES
]


@pytest.mark.parametrize("case", EACH)
def test_kernel_gives_what_the_definition_gives(
    case: Case, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    _compare(case, device, record_property)


@pytest.mark.gpu
@pytest.mark.parametrize("case", v41_flash_cases(), ids=_ids)
def test_kernel_gives_what_the_definition_gives_at_flash_shapes(
    case: Case, gpu: torch.device, record_property: Callable[[str, object], None]
) -> None:
    _compare(case, gpu, record_property)


def _compare(case: Case, device: torch.device, record_property: Callable[[str, object], None]) -> None:
    arguments = case.arguments(device)
    expected = getattr(v41, case.operator)(*arguments)
    with poisoned(), Recorder() as recorder:
        actual = getattr(TritonOperators, case.operator)(*arguments)
    assert recorder.seen <= MEMORY_AND_SHAPE, "all arithmetic is the kernels' own"
    record_property("relative_error", assert_same(actual, expected, case.tolerance))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [c for c in V41_CASES if c.label != "no entries"], ids=_ids)  # launches nothing
def test_a_captured_kernel_gives_the_same(case: Case, gpu: torch.device) -> None:
    arguments = case.arguments(gpu)
    operator = getattr(TritonOperators, case.operator)
    expected = operator(*arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator(*arguments)
    graph.replay()
    assert assert_same(captured, expected, case.tolerance) == 0


@pytest.mark.parametrize("case", OF_FP8, ids=_ids)
def test_an_emulated_operator_gives_the_same_bits(case: Case, device: torch.device) -> None:
    arguments = case.arguments(device)
    plain = _results(TritonOperators, case, arguments)
    assert _same_bits(plain, _results(emulating(TritonOperators()), case, arguments))
    assert _same_bits(_results(v41, case, arguments), _results(emulating(Operators()), case, arguments))


def _round_up(x: torch.Tensor) -> torch.Tensor:
    """Scales as powers of two, as V4's index keys have them."""
    return reference.fp4_act_quant_roundtrip(x, 16)


# (defect, operator, case, the definition with the mistake)
DEFECTS: list[tuple[str, str, str, Callable[..., Any]]] = [
    ("sums for exclusive or", "ngram_rows", "8 heads",
     lambda ids, m, p, o: (((ids * m).cumsum(-1)[..., 1:, None] % p) + o).flatten(-2)),
    ("lookbacks in the other order", "ngram_rows", "8 heads", lambda ids, *a: v41.ngram_rows(ids.flip(-1), *a)),
    ("heads before lengths", "ngram_rows", "8 heads",
     lambda *a: v41.ngram_rows(*a).unflatten(-1, (3, 8)).mT.flatten(-2)),
    ("multipliers as doubles", "ngram_rows", "8 heads",
     lambda ids, m, p, o: v41.ngram_rows(ids, (m.double() * 1024.5 / 1024).long(), p, o)),
    ("scales of another row", "engram_rows", "codes",
     lambda c, s, r, f: v41.engram_rows(c, s.view(torch.uint8).roll(1, 0).view(s.dtype), r, f)),
    ("rows of other ranks not zero", "engram_rows", "codes of a rank",
     lambda c, s, r, f: v41.engram_rows(c, s, (r - f).clamp(0, len(c) - 1), 0)),
    ("no sign in the gate", "engram_gate", "4 streams bfloat16",
     lambda x, kv, q, k, eps, text: v41.engram_gate(x, kv.abs(), q.abs() * x.sign().where(x != 0, 1)[1], k.abs(), eps)),
    ("images take part", "engram_gate", "images bfloat16", lambda *a: v41.engram_gate(*a[:5])),
    ("value before keys", "engram_gate", "4 streams bfloat16",
     lambda x, kv, *a: v41.engram_gate(x, kv.roll(x.shape[-1], -1), *a)),
    ("scales are powers of two", "fp4_keys_roundtrip", "odd bfloat16", _round_up),
    ("groups of 32", "fp4_keys_roundtrip", "odd float32",
     lambda x: reference.fp4_act_quant_roundtrip(torch.nn.functional.pad(x, (0, 16)), 32)[..., :80]),
    ("scales of another tile", "fp8_linear_32", "parts",
     lambda x, w, ws, t: v41.fp8_linear_32(x, w, ws.view(torch.uint8).roll(1, 1).view(ws.dtype), t)),
    ("tiles transposed", "fp8_linear_32", "odd bfloat16",
     lambda x, w, ws, t: v41.fp8_linear_32(x, w, ws.view(torch.uint8).flip(0).view(ws.dtype), t)),
    ("one stream", "hc_collapse", "odd bfloat16", lambda x, pre: v41.hc_collapse(x, pre * torch.tensor([1, 1, 1, 0]))),
    ("parts not added up", "hc_delayed", "parts",
     lambda x, m, s, *a: v41.hc_delayed(x, m[:1], s[:1], *a)),
    ("pre without eps", "hc_delayed", "parts",
     lambda *a: (lambda pre, post, comb: (pre * 0.999, post, comb))(*v41.hc_delayed(*a))),
    ("entries of the window's places", "shared_attention", "two lists bfloat16",
     lambda q, w, e, sink, wi, ei, scale: v41.shared_attention(q, w, torch.cat((w, e), 1), sink, wi, ei, scale)),
    ("two softmaxes", "shared_attention", "two lists bfloat16",
     lambda q, w, e, sink, wi, ei, scale: (reference.sparse_attention(q, w, sink, wi, scale)
                                           + reference.sparse_attention(q, e, sink, ei, scale)) / 2),
    ("the newest block only if it is good", "candidate_blocks", "ties",
     lambda s, v, size, k: reference.topk_visible(
         torch.nn.functional.pad(s.masked_fill(torch.arange(100) >= v[..., None], -torch.inf), (0, 4), value=-torch.inf)
         .unflatten(-1, (-1, 8)).amax(-1), (v + 7) // 8, k)),
    ("hidden entries count", "candidate_blocks", "ties",
     lambda s, v, size, k: v41.candidate_blocks(s, v * 0 + 100, size, k)),
    ("not among candidates", "topk_candidates", "ties", lambda s, v, k, b, size: reference.topk_visible(s, v, k)),
    ("blocks of another size", "topk_candidates", "ties", lambda s, v, k, b, size: v41.topk_candidates(s, v, k, b, 4)),
    ("images by the text's bias", "route_modal", "images", lambda s, b, vl, i, *a: v41.route_modal(s, b, b, i, *a)),
    ("nothing under the sum", "route_modal", "nothing scores",
     lambda s, b, vl, i, *a: reference.route(s, b, *a)),
    ("groups of 64", "moe_experts_32", "plain bfloat16",
     lambda *a: sum_experts(*a, 64)),
    ("hidden layer not rounded", "moe_experts_32", "plain bfloat16",
     lambda x, i, w, e, limit, q: v41.moe_experts_32(reference.act_quant_roundtrip(x, 32), i, w, e, limit, False)),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "label", "defective"), [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_planted_defect_is_caught(
    operator: str, label: str, defective: Callable[..., Any], device: torch.device
) -> None:
    case = next(c for c in V41_CASES if (c.operator, c.label) == (operator, label))
    arguments = case.arguments(device)
    kernel = getattr(TritonOperators, operator)(*arguments)
    with torch.device(device):
        wrong = defective(*arguments)
    with pytest.raises(AssertionError):
        assert_same(kernel, wrong, case.tolerance)
