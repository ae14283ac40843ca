"""The definitions for INT8 and FP8 by row and MXFP8, against numpy and ml_dtypes; defects in them would show."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.reference.quantisation import decode
from flagrelease.engine.kernels.weights import check_weight, weight_format

EDGES = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127.0], [0.0] * 8, [1e-30, -1e-30] + [0.0] * 6])


def test_int8_rounds_ties_to_even_and_keeps_zeros() -> None:
    codes, scale = reference.token_quant(EDGES, torch.int8)
    assert codes[0].tolist() == [127, 0, 2, 2, 0, -2, 126, -127]  # the scale is 1
    assert codes[1].tolist() == [0] * 8
    assert codes[2].tolist() == [127, -127] + [0] * 6
    assert scale[:2].tolist() == [1.0, 0.0]


def test_int8_is_numpys() -> None:
    x = torch.randn(37, 300) * torch.logspace(-6, 6, 37)[:, None]
    codes, scale = reference.token_quant(x, torch.int8)
    expected = np.abs(x.numpy()).max(1) / np.float32(127)
    assert np.array_equal(scale.numpy(), expected)
    assert np.array_equal(codes.numpy(), np.rint(x.numpy() / expected[:, None]).clip(-127, 127))


def test_fp8_is_ml_dtypes_and_has_a_least_scale() -> None:
    x = torch.randn(37, 300) * torch.logspace(-8, 6, 37)[:, None]
    codes, scale = reference.token_quant(x, torch.float8_e4m3fn)
    expected = np.maximum(np.abs(x.numpy()).max(1) / np.float32(448), np.float32(1 / (448 * 512)))
    assert np.array_equal(scale.numpy(), expected)
    steps = (x.numpy() / expected[:, None]).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(codes.view(torch.uint8).numpy(), steps.view(np.uint8))
    assert bool((scale == 1 / (448 * 512)).any())


def test_mxfp8_is_the_specifications() -> None:
    """2^(floor(log2 max) - 8): a maximum of 511 has scale 1 and saturates at 448; 512 has scale 2."""
    x = torch.zeros(2, 32)
    x[0, :3], x[1, :2] = torch.tensor([511.0, -460.0, 17.0]), torch.tensor([512.0, 17.0])
    y = reference.mx_act_quant_roundtrip(x)
    assert y[0, :3].tolist() == [448.0, -448.0, 16.0]
    assert y[1, :2].tolist() == [512.0, 16.0]
    assert not reference.mx_act_quant_roundtrip(torch.zeros(1, 64)).any()


def test_int32_sums_are_exact_and_scaled_in_order() -> None:
    """Sums beyond 2^24, where FP32 additions would lose bits."""
    xq = torch.randint(100, 128, (5, 4096), dtype=torch.int8)
    w = torch.randint(100, 128, (7, 4096), dtype=torch.int8)
    xs, ws = torch.rand(5), torch.rand(7)
    total = xq.numpy().astype(np.int64) @ w.numpy().astype(np.int64).T
    assert total.min() > 2**24
    expected = total.astype(np.float32) * xs.numpy()[:, None] * ws.numpy()
    assert np.array_equal(reference.row_linear(xq, xs, w, ws, torch.float32).numpy(), expected)


@pytest.mark.parametrize(
    "defect", ["neighbour's scale", "token's scale of the neighbour", "codes of a transposed weight"]
)
def test_planted_defects_show(defect: str) -> None:
    xq, xs = reference.token_quant(torch.randn(8, 64), torch.int8)
    w, ws = torch.randint(-127, 128, (64, 64), dtype=torch.int8), torch.rand(64) + 0.1
    planted: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {
        "neighbour's scale": (xq, xs, w, ws.roll(1)),
        "token's scale of the neighbour": (xq, xs.roll(1), w, ws),
        "codes of a transposed weight": (xq, xs, w.mT, ws),
    }
    right = reference.row_linear(xq, xs, w, ws, torch.float32)
    assert (reference.row_linear(*planted[defect], torch.float32) - right).norm() > 0.01 * right.norm()


def test_formats_are_told_apart_and_decoded() -> None:
    w, ws = torch.randint(-127, 128, (4, 64), dtype=torch.int8), torch.rand(4)
    codes = torch.randn(4, 64).to(torch.float8_e4m3fn)
    bytes_ = torch.randint(100, 140, (4, 2), dtype=torch.uint8)
    cases = {"int8": (w, ws), "fp8-channel": (codes, ws), "mxfp8": (codes, bytes_)}
    for fmt, (weight, scale) in cases.items():
        assert weight_format(weight, scale) == fmt
        check_weight(weight, scale)
    assert torch.equal(decode(w, ws, torch.float32), w.float() * ws[:, None])
    assert torch.equal(decode(codes, ws, torch.float32), codes.float() * ws[:, None])
    spread = torch.exp2(bytes_.float() - 127).repeat_interleave(32, 1)
    assert torch.equal(decode(codes, bytes_, torch.float32), codes.float() * spread)


@pytest.mark.parametrize(
    ("weight", "scale", "rule"),
    [
        (torch.zeros(4, 64, dtype=torch.int8), torch.ones(3), "shape"),
        (torch.zeros(4, 64, dtype=torch.int8), torch.ones(4).bfloat16(), "scales are"),
        (torch.zeros(4, 64).to(torch.float8_e4m3fn), torch.ones(4, 3, dtype=torch.uint8), "shape"),
        (torch.zeros(4, 48).to(torch.float8_e4m3fn), torch.ones(4, 1, dtype=torch.uint8), "blocks of 32"),
    ],
)
def test_scales_that_do_not_fit_are_refused(weight: Tensor, scale: Tensor, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        check_weight(weight, scale)


def test_weights_by_row_take_codes_only() -> None:
    w, ws = torch.zeros(4, 64, dtype=torch.int8), torch.ones(4)
    with pytest.raises(ValueError, match="do not fit a weight"):
        reference.row_linear(torch.zeros(2, 64), torch.ones(2), w, ws)
