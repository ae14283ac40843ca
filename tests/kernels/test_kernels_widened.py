"""FP4 experts that are decoded to FP8 for many tokens: as the definition, and only where FP8 holds the codes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from kernel_cases import experts, moe
from kernel_comparison import poisoned
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.emulation import emulated_fp8
from flagrelease.engine.kernels.experts import widened_experts
from flagrelease.engine.kernels.quantisation import fp4_scaled
from flagrelease.engine.kernels.quantisation.fp4_codes import arrange_experts
from flagrelease.engine.kernels.triton_operators import TritonOperators
from flagrelease.engine.kernels.weights import ExpertWeights

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# Hopper's FP8 unit adds with fewer bits than FP32 has: a sum of 128 products is off by 1.3e-4 of its size (H200). More
# values of the hidden layer fall to the other side of a step of FP8, 6 to 12 % of them: 0.3 to 1.04 % in the end.
FP8_UNIT = 1.5e-2
SHAPE = (2, 256, 256, 1)  # experts of this rank, their width, hidden size, the first one


def arguments(device: torch.device) -> tuple[Tensor, Tensor, Tensor, ExpertWeights]:
    """Tokens with two experts each of four; the last ones are padding."""
    x, ids, weights, held, _, _ = moe(30, 2, "fp4", torch.bfloat16, True, SHAPE)
    ids[27:] = -1
    scales = {name: getattr(held, name).to(device) for name in ("w1", "w3", "w2", "s1", "s3", "s2")}
    return x.to(device), ids.to(device), weights.to(device), replace(held, **scales)


def widened(
    monkeypatch: pytest.MonkeyPatch, x: Tensor, ids: Tensor, weights: Tensor, held: ExpertWeights, at_once: int
) -> Tensor:
    """Through the operator, as if these were many tokens."""
    used: list[int] = []
    exact = widened_experts.widened_expert_outputs
    monkeypatch.setattr(widened_experts, "FEWEST", 0)
    monkeypatch.setattr(widened_experts, "AT_ONCE", at_once)
    monkeypatch.setattr(widened_experts, "widened_expert_outputs", lambda *a: used.append(1) or exact(*a))
    with poisoned():
        y = TritonOperators.moe_experts(x, ids, weights, arrange_experts(deepcopy(held)), 10.0, True)
    assert used == [1]
    return y


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.slow
def test_emulated_fp8_gives_the_same_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, which multiplies FP8 and BF16 numbers alike."""
    given = arguments(device)
    with monkeypatch.context() as patch:
        exact = widened(patch, *given, 32)
    with emulated_fp8():
        emulated = widened(monkeypatch, *given, 32)
    assert distance(emulated, exact) <= (0 if device.type == "cpu" else FP8_UNIT)


@pytest.mark.parametrize("at_once", [1, 32])
def test_the_same_as_the_definition(device: torch.device, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    x, ids, weights, held = arguments(device)
    expected = reference.moe_experts(x, ids, weights, held, 10.0, True)
    actual = widened(monkeypatch, x, ids, weights, held, at_once)
    assert not actual[27:].any()
    # The order of additions moves a few of the hidden layer's values by a step of FP8.
    assert distance(actual, expected) <= (4e-3 if device.type == "cpu" else FP8_UNIT)


def test_planted_gate_and_up_swapped(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x, ids, weights, held = arguments(device)
    expected = reference.moe_experts(x, ids, weights, held, 10.0, True)
    swapped = replace(held, w1=held.w3, w3=held.w1, s1=held.s3, s3=held.s1)
    assert distance(widened(monkeypatch, x, ids, weights, swapped, 2), expected) > 0.1


def test_codes_and_scales_are_exact(device: torch.device) -> None:
    """Over the widest span of scales that is allowed, rows of w1 and w3 in turn, and w2."""
    held = experts("fp4", 2, 256, 512, 0)
    spread = torch.randint(104, 116, held.s1.shape, dtype=torch.uint8)  # type: ignore[union-attr]
    held = replace(held, s1=spread.view(torch.float8_e8m0fnu), s3=(spread.flip(0)).view(torch.float8_e8m0fnu))
    exact = [reference_values(w, s) for w, s in ((held.w1, held.s1), (held.w3, held.s3), (held.w2, held.s2))]
    names = ("w1", "w3", "w2", "s1", "s3", "s2")
    arranged = arrange_experts(replace(held, **{name: getattr(held, name).to(device).clone() for name in names}))
    assert arranged.even
    w13 = widened_experts.widen(arranged.w1, arranged.s1, arranged.w3, arranged.s3)
    w2 = widened_experts.widen(arranged.w2, arranged.s2)
    assert torch.equal(values(*w13), torch.stack(exact[:2], 2).flatten(1, 2))
    assert torch.equal(values(*w2), exact[2])


def reference_values(w: Tensor, s: Tensor | None) -> Tensor:
    """[E, N, K] of packed codes with scales."""
    assert s is not None
    return torch.stack([reference_decoded(each, scale) for each, scale in zip(w, s, strict=True)])


def reference_decoded(w: Tensor, s: Tensor) -> Tensor:
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.stack((w.view(torch.uint8) & 15, w.view(torch.uint8) >> 4), -1).flatten(-2)
    return table[codes.long()] * torch.exp2(s.view(torch.uint8).float() - 127).repeat_interleave(32, -1)


def values(codes: Tensor, scales: Tensor) -> Tensor:
    """[E, N, K] of E4M3 codes with E8M0 bytes for 128 x 128."""
    powers = torch.exp2(scales.cpu().float() - 127).repeat_interleave(128, 1).repeat_interleave(128, 2)
    return codes.cpu().float() * powers


@pytest.mark.parametrize(("most", "even"), [(115, True), (116, False)])
def test_scales_too_far_apart_are_not_widened(device: torch.device, most: int, even: bool) -> None:
    held = experts("fp4", 2, 256, 512, 0)
    names = ("s1", "s3", "s2")
    scales = {name: torch.full_like(getattr(held, name).view(torch.uint8), 104) for name in names}
    scales["s3"][1, 70, 9] = most  # of one block w1 has 2^-23, and w3 that
    scales = {name: scale.view(torch.float8_e8m0fnu).to(device) for name, scale in scales.items()}
    codes = {name: getattr(held, name).to(device) for name in ("w1", "w3", "w2")}
    arranged = arrange_experts(replace(held, **codes, **scales))
    assert arranged.even is even
    assert widened_experts.are_worth_it(arranged, 10**6, True) is even
    assert not widened_experts.are_worth_it(arranged, 10**6, False)
    assert not widened_experts.are_worth_it(arranged, 2 * widened_experts.FEWEST - 1, True)


def emulated(program: str, registers: dict[str, Tensor]) -> None:
    """Run PTX of 32-bit integers on int64 tensors, in place."""
    for line in program.split(";"):
        words = line.replace(",", " ").strip(" {}\n").split()
        if not words or words[0].startswith("."):
            continue
        name, to, *given = words
        a, b = (registers[g] if g in registers else torch.tensor(int(g, 0)) for g in given)
        results = {"and": a & b, "or": a | b, "add": a + b, "mul": a * b}
        shift = {"shl": a << b.clamp(max=31), "shr": a >> b.clamp(max=31)} if int(b.max()) < 32 else {}
        registers[to] = (results | shift)[name.split(".")[0]] & 0xFFFFFFFF


@pytest.mark.parametrize("exponent", range(1, 13))
def test_the_assembly_scales_every_code(exponent: int) -> None:
    """For which no device is needed: all bytes of a word against the table of codes."""
    word = torch.arange(256) * 0x01010101
    registers = {f"${8 + i}": word for i in range(4)}
    registers |= {f"${12 + i}": torch.tensor(8 * exponent) for i in range(4)}
    registers |= {f"${16 + i}": torch.tensor(8 * (13 - exponent)) for i in range(4)}
    emulated(fp4_scaled._PTX_SCALED.value.replace(" .reg .b32 a, b, n, t", ""), registers)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    byte = torch.arange(256)
    x = (byte >> 4) & 8 | (byte >> 2) & 7  # the table in `fp4_codes`
    y = (byte >> 2) & 8 | (byte >> 4) & 4 | byte & 3
    for i in range(4):
        for place, (codes, power) in enumerate(((x, exponent), (y, 13 - exponent))):
            made = registers[f"${2 * i + place}"]
            for lane in range(4):
                values = ((made >> (8 * lane)) & 255).to(torch.uint8).view(torch.float8_e4m3fn).float()
                assert torch.equal(values, table[codes] * 2.0 ** (power - 6))
