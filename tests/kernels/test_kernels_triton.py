"""Every Triton kernel against its torch definition: odd shapes in the interpreter and on a GPU, V4-Flash's on a GPU.

The provider `triton` leaves nothing to torch but memory and shapes, which the same calls show.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from coded_cases import CODED_CASES
from decoding_cases import DECODING_CASES
from kernel_cases import CASES, Case, flash_cases
from kernel_comparison import assert_same, poisoned
from torch_operations import MEMORY_AND_SHAPE, Recorder

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.operators import OPERATORS
from flagrelease.engine.kernels.triton_operators import TritonOperators

# numpy, which the interpreter computes with, warns of infinities that are meant (exp in a sigmoid) and of NaN in rows
# that belong to other ranks' experts: never written, hence poisoned here, quantised with the rest, never read.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _ids(case: Case) -> str:
    return f"{case.operator}: {case.label}"


def test_every_operator_has_a_case_and_a_kernel() -> None:
    assert {case.operator for case in [*CASES, *DECODING_CASES, *CODED_CASES]} == set(OPERATORS)
    implementations = TritonOperators().describe()
    assert not [name for name in OPERATORS if implementations[name].startswith("flagrelease.engine.kernels.reference")]


def _long(case: Case) -> bool:
    """Up to 2 s in the interpreter, where the same experts in BF16 show it too; on a GPU all run."""
    return case.operator == "moe_experts" and case.label.endswith("float32") and "plain" not in case.label


EACH = [pytest.param(case, id=_ids(case), marks=pytest.mark.slow if _long(case) else []) for case in CASES]


@pytest.mark.parametrize("case", EACH)
def test_kernel_gives_what_the_definition_gives(
    case: Case, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    _compare(case, device, record_property)


@pytest.mark.gpu
@pytest.mark.parametrize("case", flash_cases(), ids=_ids)
def test_kernel_gives_what_the_definition_gives_at_flash_shapes(
    case: Case, gpu: torch.device, record_property: Callable[[str, object], None]
) -> None:
    _compare(case, gpu, record_property)


def _compare(case: Case, device: torch.device, record_property: Callable[[str, object], None]) -> None:
    arguments = case.arguments(device)
    expected = getattr(reference, case.operator)(*arguments)
    with poisoned(), Recorder() as recorder:
        actual = getattr(TritonOperators, case.operator)(*arguments)
    assert recorder.seen <= MEMORY_AND_SHAPE, "all arithmetic is the kernels' own"
    record_property("relative_error", assert_same(actual, expected, case.tolerance))


def test_arithmetic_of_torch_is_seen() -> None:
    with Recorder() as recorder:
        reference.rms_norm(torch.randn(2, 8), None, 1e-6)
    assert {"mean", "rsqrt", "mul"} <= recorder.seen


@pytest.mark.gpu
@pytest.mark.parametrize("case", [c for c in CASES if c.label != "no entries"], ids=_ids)  # launches nothing
def test_a_captured_kernel_gives_the_same(case: Case, gpu: torch.device) -> None:
    """In a CUDA graph nothing may wait for the device, and shapes may depend on shapes only."""
    arguments = case.arguments(gpu)
    operator = getattr(TritonOperators, case.operator)
    expected = operator(*arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator(*arguments)
    graph.replay()
    assert assert_same(captured, expected, case.tolerance) == 0


@pytest.mark.parametrize("operator", ["rms_norm", "apply_rope", "act_quant_roundtrip", "fp4_act_quant_roundtrip"])
def test_results_are_written_in_place_of_a_slice(operator: str, device: torch.device) -> None:
    """As the model does: the rotated or the other columns of a head, the rest of it untouched."""
    head = torch.randn(3, 5, 192, dtype=torch.bfloat16, device=device)
    arguments = {
        "rms_norm": (None, 1e-6),
        "apply_rope": (torch.randn(5, 64, device=device), torch.randn(5, 64, device=device)),
    }.get(operator, ())
    expected = head.clone()
    expected[..., 64:] = getattr(reference, operator)(head[..., 64:], *arguments)
    part = head[..., 64:]
    assert getattr(TritonOperators, operator)(part, *arguments, out=part) is part
    assert_same(head, expected)


def test_out_of_another_shape_is_refused(device: torch.device) -> None:
    x = torch.randn(4, 64, device=device)
    with pytest.raises(ValueError, match="out is"):
        TritonOperators.rms_norm(x, None, 1e-6, out=x[:3])


def test_every_fp4_code_times_every_scale_is_decoded_exactly(device: torch.device) -> None:
    """The identity times a weight of all codes, E8M0 bytes 0 to 250: larger ones overflow FP32, and 0 * inf is NaN."""
    codes = torch.arange(32, dtype=torch.uint8).view(1, 32) % 16
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).expand(251, 16).contiguous()
    scale = torch.arange(251, dtype=torch.uint8).view(251, 1)
    e8m0 = scale.view(torch.float8_e8m0fnu).to(device)
    actual = TritonOperators.fp4_linear(torch.eye(32, device=device), None, packed.to(device), e8m0, torch.float32)
    values = codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    expected = values.T * scale.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64).T
    assert np.array_equal(actual.cpu().numpy().astype(np.float64), expected)


def test_every_fp8_code_times_every_scale_is_decoded_exactly(device: torch.device) -> None:
    """The same for E4M3 (NaN codes left out: they would spread over the sums), one scale for 128 x 128 codes."""
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F] + [0, 0], dtype=torch.uint8)
    weight = codes.view(2, 128).repeat_interleave(128, 0).view(torch.float8_e4m3fn)
    values = weight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    identity = torch.eye(128, device=device)
    for byte in (0, 1, 2, 100, 127, 200, 240):
        scale = torch.full((2, 1), byte, dtype=torch.uint8, device=device).view(torch.float8_e8m0fnu)
        actual = TritonOperators.fp8_linear(identity, None, weight.to(device), scale, torch.float32)
        assert np.array_equal(actual.cpu().numpy().astype(np.float64), values.T * 2.0 ** (byte - 127))


def test_quantised_values_at_the_edges(device: torch.device) -> None:
    """Zero groups, ties, carries out of the mantissa and the largest values, code for code."""
    edges = torch.tensor([0.0, -0.0, 448, -448, 447.9, -127.89, 0.0009765625, 0.0029296875, 17.0, 19.0, 1e-5, -3.3])
    x = torch.zeros(3, 128)
    x[0, : len(edges)], x[1] = edges, torch.linspace(-6.0, 6.0, 128)
    for operator in ("act_quant", "fp4_act_quant"):
        actual = getattr(TritonOperators, operator)(x.to(device))
        assert_same(actual, getattr(reference, operator)(x.to(device)), operator)


@pytest.mark.parametrize("quantise", [True, False])
def test_experts_without_a_token_and_tokens_without_an_expert(quantise: bool, device: torch.device) -> None:
    case = next(c for c in CASES if c.operator == "moe_experts")
    x, ids, weights, experts, limit, _ = case.arguments(device)
    ids = torch.where(torch.arange(len(x), device=device)[:, None] < 3, 5, 0).expand_as(ids).contiguous()
    actual = TritonOperators.moe_experts(x, ids, weights, experts, limit, quantise)
    assert_same(actual, reference.moe_experts(x, ids, weights, experts, limit, quantise), "moe_experts")
    assert not actual.any()
    ids[1, 0] = experts.first
    assert TritonOperators.moe_experts(x, ids, weights, experts, limit, quantise).any(1).nonzero().tolist() == [[1]]
