"""The definitions of FP8 and FP4 quantisation against ml_dtypes (an independent implementation).

Powers of two are found with fractions; everything is compared exactly.
"""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.linear.widen import widen
from flagrelease.engine.kernels.reference.quantisation import dequantise, scaled_fp16
from flagrelease.engine.kernels.weights import ExpertWeights, check_weight

LARGEST = {ml_dtypes.float8_e4m3fn: 448, ml_dtypes.float4_e2m1fn: 6}
SMALLEST_AMAX = {ml_dtypes.float8_e4m3fn: 1e-4, ml_dtypes.float4_e2m1fn: 6 * 2.0**-126}


def samples(rows: int, columns: int) -> Tensor:
    """BF16 rows of magnitudes 2^-12 to 2^12, one of zeros, and two whose maximum is exactly the format's."""
    x = torch.randn(rows, columns) * torch.exp2(torch.randint(-12, 13, (rows, 1)).float())
    x[0] = 0
    x[1] = torch.linspace(-448.0, 448.0, columns)
    x[2] = torch.linspace(-6.0, 6.0, columns)
    return x.bfloat16()


def quantise_literally(x: Tensor, block: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """(values, scales) in float64: the scale is the least power of two 2^e with amax <= largest * 2^e, exactly."""
    groups = x.double().numpy().reshape(-1, block)
    scales = np.empty(len(groups))
    for i, group in enumerate(groups):
        amax = Fraction(float(max(np.abs(group).max(), SMALLEST_AMAX[dtype])))
        exponent = math.floor(math.log2(amax / LARGEST[dtype])) - 1
        while amax > LARGEST[dtype] * Fraction(2) ** exponent:
            exponent += 1
        scales[i] = 2.0**exponent
    values = (groups / scales[:, None]).astype(np.float32).astype(dtype).astype(np.float64)
    return values.reshape(x.shape), scales.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("block", [64, 128])
def test_fp8_codes_and_scales(block: int) -> None:
    x = samples(200, 256)
    codes, scale = reference.act_quant(x, block)
    values, scales = quantise_literally(x, block, ml_dtypes.float8_e4m3fn)
    assert np.array_equal(codes.double().numpy(), values)
    assert np.array_equal(scale.double().numpy(), scales)
    roundtrip = reference.act_quant_roundtrip(x, block)
    assert roundtrip.dtype == torch.bfloat16
    assert np.array_equal(roundtrip.double().numpy(), values * scales.repeat(block, -1))


def test_scaled_fp16_loses_less_than_adding_up_does() -> None:
    x = (torch.randn(200, 256) * torch.exp2(torch.randint(-60, 40, (200, 256)).float())).bfloat16()
    x[0], x[1], x[2, 0] = 0, 2.0**-130, 3.0e38  # nothing, what FP32 has no normal number for, BF16's largest
    y, scale = scaled_fp16(x)
    assert y.dtype == torch.float16
    assert torch.equal(scale.log2(), scale.log2().round())
    groups, values = x.double().unflatten(-1, (-1, 128)), y.double().unflatten(-1, (-1, 128))
    largest = groups.abs().amax(-1, keepdim=True)
    assert ((values.abs().amax(-1) >= 2**15) | (largest[..., 0] < 2.0**-111)).all()
    lost = (values * scale.double()[..., None] - groups).abs()
    assert lost[groups.abs() >= largest * 2.0**-32].max() == 0
    assert (lost <= largest * 2.0**-40).all()
    assert lost.max() > 0


def test_widened_weights_are_the_same_numbers(device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    w = codes[~codes.float().isnan()].repeat(2 * 256 * 200)[: 2 * 256 * 200].view(2, 256, 200)
    ws = torch.randint(10, 247, (2, 2, 2), dtype=torch.uint8)  # 2^-117 to 2^119
    factors = torch.exp2(ws.double() - 127).repeat_interleave(128, 1).repeat_interleave(128, 2)[..., :200]
    wide = widen(w.to(device), ws.to(device).view(torch.float8_e8m0fnu))
    assert wide.dtype == torch.bfloat16
    assert torch.equal(wide.cpu().double(), w.double() * factors)
    with pytest.raises(ValueError, match="blocks of 128 rows"):
        widen(w[:, :200].contiguous().to(device), ws.to(device).view(torch.float8_e8m0fnu))


def test_fp4_codes_and_scales() -> None:
    x = samples(200, 96)
    packed, scale = reference.fp4_act_quant(x)
    values, scales = quantise_literally(x, 32, ml_dtypes.float4_e2m1fn)
    codes = np.stack((packed.numpy() & 15, packed.numpy() >> 4), -1).reshape(200, 96)
    assert np.array_equal(codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64), values)
    assert np.array_equal(scale.double().numpy(), scales)
    assert np.array_equal(reference.fp4_act_quant_roundtrip(x).double().numpy(), values * scales.repeat(32, -1))


def test_the_roundtrip_is_no_identity() -> None:
    """In upstream's first release it was: the scaled value was cast to BF16 instead of E4M3."""
    x = torch.randn(4, 128).bfloat16()
    assert (reference.act_quant_roundtrip(x) != x).float().mean() > 0.5


def test_ties_go_to_the_even_code() -> None:
    x = torch.zeros(1, 32)
    x[0, :9] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75, 6.0])  # 6 fixes the scale at 1
    expected = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -1.0, 6.0]
    assert reference.fp4_act_quant_roundtrip(x)[0, :9].tolist() == expected


def test_the_low_nibble_is_the_even_column() -> None:
    x = torch.zeros(1, 32)
    x[0, :2] = torch.tensor([6.0, 1.0])
    packed, _ = reference.fp4_act_quant(x)
    assert packed[0, 0] == 7 | (2 << 4)
    w = torch.zeros(1, 16, dtype=torch.uint8)
    w[0, 0] = 7 | (2 << 4)
    one = torch.full((1, 1), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    assert dequantise(w, one)[0, :2].tolist() == [6.0, 1.0]
    assert dequantise(w.view(torch.int8), one)[0, :2].tolist() == [6.0, 1.0]


def test_stored_weights_are_decoded() -> None:
    """Ragged FP8 blocks, every E8M0 byte but NaN, FP32 scales; FP4 groups along the row."""
    w = torch.randn(130, 200).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0, 254], [127, 120]], dtype=torch.uint8)
    values = w.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    for ws in (scale.view(torch.float8_e8m0fnu), torch.rand(2, 2)):
        if ws.dtype == torch.float32:
            factors = ws.numpy()
        else:
            factors = scale.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        with np.errstate(over="ignore"):
            expected = values * factors[np.ix_(np.arange(130) // 128, np.arange(200) // 128)]
        assert np.array_equal(dequantise(w, ws).numpy(), expected)

    packed = torch.randint(0, 256, (255, 16), dtype=torch.uint8)
    scale = torch.arange(255, dtype=torch.uint8).view(255, 1)
    codes = np.stack((packed.numpy() & 15, packed.numpy() >> 4), -1).reshape(255, 32).astype(np.uint8)
    factors = scale.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * factors
    assert np.array_equal(dequantise(packed, scale.view(torch.float8_e8m0fnu)).numpy(), expected)


@pytest.mark.parametrize(
    ("weight", "scale", "rule"),
    [
        (torch.zeros(4, 16, dtype=torch.uint8), None, "comes with scales"),
        (torch.zeros(4, 32), torch.zeros(1, 1), "comes without scales"),
        (torch.zeros(4, 16, dtype=torch.int8), torch.zeros(4, 1, dtype=torch.uint8), "scales are .*e8m0"),
        (torch.zeros(4, 16, dtype=torch.int8), torch.ones(4, 2), "shape"),
        (torch.zeros(4, 15, dtype=torch.int8), torch.ones(4, 1), "multiple of 32"),
        (torch.zeros(129, 128).to(torch.float8_e4m3fn), torch.ones(1, 1), "shape"),
    ],
)
def test_weights_that_do_not_fit_their_scales_are_refused(weight: Tensor, scale: Tensor | None, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        check_weight(weight, scale)


def test_experts_of_disagreeing_shapes_are_refused() -> None:
    w = torch.zeros(2, 8, 4)
    with pytest.raises(ValueError, match="disagree"):
        ExpertWeights(w, w, w, None, None, None, 0)
    with pytest.raises(ValueError, match="mixed types"):
        ExpertWeights(w, w, w.mT.bfloat16(), None, None, None, 0)


def test_groups_must_divide_the_columns() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        reference.act_quant(torch.zeros(2, 200))
