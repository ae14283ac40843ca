"""E4M3 by integer arithmetic is E4M3: torch's code for every input, and torch's value for every code.

Both roundings, torch's and ours, are monotone: torch's because a rounding is, ours because within one leading digit a
constant is added before bits are cut off, and at most one more at the next. So two that agree on both sides of every
step agree everywhere, and the steps, 126 for each sign, lie where the exact arithmetic here puts them.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.quantisation.e4m3 import e4m3_value, nearest_e4m3
from flagrelease.engine.kernels.reference import e4m3

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Codes = Callable[[Tensor], Tensor]  # of FP32: uint8


@jit
def _nearest_kernel(x_ptr: tl.tensor, y_ptr: tl.tensor, SIZE: tl.constexpr) -> None:  # noqa: N803
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y_ptr + at, nearest_e4m3(tl.load(x_ptr + at)).to(tl.uint8))


@jit
def _value_kernel(x_ptr: tl.tensor, y_ptr: tl.tensor) -> None:
    at = tl.arange(0, 256)
    tl.store(y_ptr + at, e4m3_value(tl.load(x_ptr + at).to(tl.int32)))


def _in_triton(device: torch.device) -> Codes:
    def codes(x: Tensor) -> Tensor:
        whole = torch.zeros(-(-len(x) // 65536) * 65536, device=device)
        whole[: len(x)] = x.to(device)
        y = torch.empty(whole.shape, dtype=torch.uint8, device=device)
        _nearest_kernel[(len(whole) // 65536,)](whole, y, 65536)
        return y[: len(x)].cpu()

    return codes


@pytest.fixture(params=["torch", "triton"])
def codes(request: pytest.FixtureRequest, device: torch.device) -> Codes:
    """Each of our two roundings."""
    return e4m3.nearest_e4m3 if request.param == "torch" else _in_triton(device)


def _bits(patterns: np.ndarray) -> Tensor:
    return torch.from_numpy(patterns.astype(np.uint32).view(np.float32))


def _bf16() -> Tensor:
    return _bits(np.arange(65536, dtype=np.uint32) << 16)


def _steps() -> tuple[Tensor, Tensor]:
    """Both sides of every step of the rounding, and the step itself; and the codes that exact arithmetic gives."""
    values = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    middles = ((values[:-1] + values[1:]) / 2).astype(np.float32)  # five digits at most: exact
    even = np.arange(126) + np.arange(126) % 2
    points = np.concatenate((np.nextafter(middles, np.float32(0)), middles, np.nextafter(middles, np.float32(np.inf))))
    expected = np.concatenate((np.arange(126), even, np.arange(1, 127)))
    largest = np.finfo(np.float32).max
    points = np.concatenate((points, np.array([0, 2.0**-149, 448, 464, 480, largest, np.inf], np.float32)))
    expected = np.concatenate((expected, [0, 0, 126, 126, 126, 126, 126]))
    both = np.concatenate((points, -points))
    return torch.from_numpy(both), torch.from_numpy(np.concatenate((expected, expected + 128)).astype(np.uint8))


def _nan() -> Tensor:
    bits = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7FF00000], np.uint32)
    return _bits(np.concatenate((bits, bits | 0x80000000)))


def _definition(x: Tensor) -> Tensor:
    """Torch's code of what lies within E4M3's range; beyond it, versions differ (findings/e4m3-beyond-448.sh)."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)


def test_every_bf16_number_has_torchs_code(codes: Codes) -> None:
    assert torch.equal(codes(_bf16()), _definition(_bf16()))


def test_both_sides_of_every_step_have_the_exact_code(codes: Codes) -> None:
    points, expected = _steps()
    assert torch.equal(_definition(points), expected), "torch's definition is the exact arithmetic"
    assert torch.equal(codes(points), expected)
    assert torch.equal(codes(_nan()), _definition(_nan()))


def test_fp32_numbers_of_every_exponent_have_torchs_code(codes: Codes) -> None:
    """Leading digits and whether anything follows them, which is all that a rounding may look at, and random ones."""
    exponents = np.arange(512, dtype=np.uint32)[:, None, None] << 23
    leading = np.arange(32, dtype=np.uint32)[None, :, None] << 18
    rest = np.array([0, 1, 0x20000, 0x3FFFF], np.uint32)
    x = torch.cat((_bits((exponents | leading | rest).ravel()), torch.randn(65536) * 100))
    assert torch.equal(codes(x), _definition(x))


@pytest.mark.slow
@pytest.mark.parametrize("exponent", range(256))
def test_every_fp32_number_has_torchs_code(exponent: int) -> None:
    """All 2^32, in torch: half an hour of one core in the interpreter would say nothing that the steps do not."""
    x = _bits((np.arange(1 << 23, dtype=np.uint32)) | np.uint32(exponent << 23))
    for signed in (x, -x):
        assert torch.equal(e4m3.nearest_e4m3(signed), _definition(signed))


def _truncated(x: Tensor) -> Tensor:
    return _definition((x.view(torch.int32) & ~0xFFFFF).view(torch.float32))


def _ties_away(x: Tensor) -> Tensor:
    return _definition((x.view(torch.int32) + 1).view(torch.float32))


def _flushed(x: Tensor) -> Tensor:
    return _definition(x * (x.abs() >= 2.0**-6))


def _overflowing(x: Tensor) -> Tensor:
    return _definition(x).where(x.abs() <= 464, (_definition(x) & 128) | 127)


@pytest.mark.parametrize("wrong", [_truncated, _ties_away, _flushed, _overflowing])
def test_a_wrong_rounding_is_seen(wrong: Codes) -> None:
    points, expected = _steps()
    assert not torch.equal(wrong(points), expected)


def _negative(x: Tensor) -> Tensor:
    """Also zeros; of NaN, whose sign means nothing, versions of torch give both."""
    return x.signbit() & ~x.isnan()


def test_every_code_has_torchs_value(device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    in_triton = torch.empty(256, device=device)
    _value_kernel[(1,)](codes.to(device), in_triton)
    for kind, values in (
        (torch.float8_e4m3fn, e4m3.e4m3_values(codes)),
        (torch.float8_e8m0fnu, e4m3.e8m0_values(codes)),
    ):
        expected = codes.view(kind).float()
        assert torch.equal(expected.nan_to_num(1.25), values.nan_to_num(1.25))
        assert torch.equal(_negative(expected), _negative(values))
    expected = codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(in_triton.cpu().nan_to_num(1.25), expected.nan_to_num(1.25))
    assert torch.equal(_negative(in_triton.cpu()), _negative(expected))
