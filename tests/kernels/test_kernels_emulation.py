"""Operators with FP8 emulated give the bits that they give with it, and touch no number of an FP8 type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from coded_cases import CODED_CASES
from decoding_cases import DECODING_CASES, WRITTEN
from kernel_cases import CASES, Case
from kernel_comparison import assert_same, poisoned
from test_kernels_decoding import arranged
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flagrelease.engine.kernels import early_launch, emulation, reference
from flagrelease.engine.kernels.emulated_operators import emulating
from flagrelease.engine.kernels.linear.widen import widen
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.kernels.triton_operators import TritonOperators

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TYPES = (torch.float8_e4m3fn, torch.float8_e8m0fnu)
OF_FP8 = {
    "act_quant", "fp8_linear", "fp8_linear_parts", "fp8_grouped_linear", "fp8_grouped_linear_parts", "fp4_linear",
    "token_quant", "row_linear", "mx_linear", "hc_pre_norm", "latents", "round_parts", "swiglu_quant", "swiglu_parts",
    "expert_outputs", "moe_experts",
}  # fmt: skip
# One for each place where kernels take or make E4M3.
QUICK = {
    "act_quant: 64 bfloat16", "token_quant: float8_e4m3fn odd bfloat16", "row_linear: float8_e4m3fn odd bfloat16",
    "mx_linear: odd bfloat16", "fp8_linear: FP32 scales", "fp4_linear: quantised", "fp8_grouped_linear: 2 groups",
    "hc_pre_norm: 4 streams bfloat16", "swiglu_quant: codes bfloat16",
}  # fmt: skip


class NoFp8(TorchDispatchMode):
    """Refuses all that computes with FP8 numbers; memory and shapes of them are left."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_to_copy", "mul", "mm", "bmm", "copy_") and any(
            isinstance(x, Tensor) and x.dtype in TYPES for x in (*args, result)
        ):
            raise AssertionError(f"{func} of FP8 numbers")
        return result


def _cases() -> Iterator[Any]:
    for case in (*CASES, *DECODING_CASES, *CODED_CASES):
        if case.operator in OF_FP8 and not ("plain" in case.label or "int8" in case.label):
            name = f"{case.operator}: {case.label}"
            yield pytest.param(case, id=name, marks=[] if name in QUICK else pytest.mark.slow)


def _results(ops: Any, case: Case, arguments: tuple[Any, ...]) -> list[Tensor]:
    """What the operator returns and what it writes to."""
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    result = getattr(ops, case.operator)(*copies)
    written = [copies[i] for i in WRITTEN.get(case.operator, ())]
    return [x for x in (*(result if isinstance(result, tuple) else (result,)), *written) if x is not None]


def _same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("case", list(_cases()))
def test_an_emulated_operator_gives_the_same_bits(case: Case, device: torch.device) -> None:
    """In the interpreter, which multiplies FP8 and BF16 numbers alike, in FP32; a GPU's FP8 unit adds with less."""
    arguments = case.arguments(device)
    given = arranged(case, arguments)
    with poisoned():
        plain, emulated = _results(TritonOperators, case, given), _results(emulating(TritonOperators()), case, given)
    if device.type == "cpu":
        assert _same_bits(plain, emulated)
    else:
        for one, other in zip(plain, emulated, strict=True):
            assert_same(other, one, case.tolerance)
    with NoFp8():
        defined = _results(emulating(Operators()), case, arguments)
    assert _same_bits(_results(reference, case, arguments), defined)


def test_a_weight_is_widened_exactly_nan_included(device: torch.device) -> None:
    """Against torch's own conversion: Triton's interpreter reads the code of NaN as 480."""
    w = torch.randint(0, 256, (2, 128, 200), dtype=torch.uint8).view(torch.float8_e4m3fn)
    ws = torch.randint(100, 140, (2, 1, 2), dtype=torch.uint8).view(torch.float8_e8m0fnu)
    with emulation.emulated_fp8():
        wide = widen(w.to(device), ws.to(device)).cpu()
    expected = w.float() * ws.float().repeat_interleave(128, -1).repeat_interleave(128, -2)[..., :200]
    assert torch.equal(wide.float().nan_to_num(1.25), expected.nan_to_num(1.25))


def test_computing_with_fp8_numbers_is_seen() -> None:
    with NoFp8(), pytest.raises(AssertionError, match="FP8 numbers"):
        reference.act_quant(torch.randn(2, 128))


def test_no_kernel_gets_an_fp8_tensor_under_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles no kernel that has a pointer to E4M3 for a chip without it."""
    given: list[torch.dtype] = []
    launch = early_launch.as_kernels_take_them

    def watched(kernel: Any) -> Any:
        return launch(lambda *args, **rest: given.extend(a.dtype for a in args if isinstance(a, Tensor)))

    monkeypatch.setattr(early_launch, "as_kernels_take_them", watched)
    ops = emulating(TritonOperators())
    ops.row_linear(
        *ops.token_quant(torch.randn(3, 128), torch.float8_e4m3fn), torch.zeros(8, 128).to(TYPES[0]), torch.ones(8)
    )
    assert given.count(torch.uint8) == 3  # what is made of x, that as it is read, and the weight
    assert not set(given) & set(TYPES)


def test_emulation_ends_with_the_call_even_if_that_fails() -> None:
    ops = emulating(Operators())
    with pytest.raises(ValueError, match="do not divide"):
        ops.act_quant(torch.zeros(2, 200))
    assert not emulation.torch_emulates("cpu")


def test_the_chip_table_says_which_devices_of_torch_have_no_fp8() -> None:
    assert emulation.torch_emulates("npu")
    assert not any(map(emulation.torch_emulates, ("cpu", "cuda", "musa")))


def test_emulated_operators_say_so() -> None:
    ops = load_provider("emulated", torch.device("cpu"))
    assert ops.name == "torch (FP8 emulated)"
    assert ops.describe() == Operators().describe()
    assert load_provider("auto", torch.device("cpu")).name == "torch"
