"""The race between tokens: its variates, transcribed with Python's integers, and what decides who wins."""

from __future__ import annotations

import math
import random

import pytest
import torch

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.reference.sampling import exponential
from flagrelease.engine.kernels.triton_operators import TritonOperators

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy tells of products that wrap, as they should
WORD = 2**32 - 1


def mixed(bits: int) -> int:
    """MurmurHash3's fmix32."""
    bits = ((bits ^ bits >> 16) * 0x85EBCA6B) & WORD
    bits = ((bits ^ bits >> 13) * 0xC2B2AE35) & WORD
    return bits ^ bits >> 16


def unmixed(bits: int) -> int:
    """What `mixed` makes `bits` of."""
    bits = ((bits ^ bits >> 16) * pow(0xC2B2AE35, -1, 2**32)) & WORD
    bits = ((bits ^ bits >> 13 ^ bits >> 26) * pow(0x85EBCA6B, -1, 2**32)) & WORD
    return bits ^ bits >> 16


def signed(word: int) -> int:
    return word - 2**32 if word >> 31 else word


def test_variates_are_those_of_the_formula() -> None:
    draw = random.Random(1)
    keys = [(draw.getrandbits(32), draw.getrandbits(32)) for _ in range(9)]
    found = exponential(torch.tensor([[signed(a), signed(b)] for a, b in keys], dtype=torch.int32), 300)
    for n, (first, second) in enumerate(keys):
        for token in range(300):
            hashed = mixed((mixed(token ^ first) + second) & WORD) & 0x7FFFFFFF
            wanted = -math.log1p(-(hashed + 0.5) / 2**31)
            assert abs(float(found[n, token]) - wanted) <= 3e-7 * wanted + 2**-24 * math.exp(wanted)  # of u near 1


@pytest.mark.parametrize("operators", [reference, TritonOperators])
def test_the_only_token_that_is_allowed_wins_with_the_worst_variate(operators: object, device: torch.device) -> None:
    """A uniform variate that FP32 rounds to 1 made E infinite: nobody finished, and token 0 was chosen."""
    token, first = 7, 12345
    second = (unmixed(0x7FFFFFFF) - mixed(token ^ first)) & WORD
    keys = torch.tensor([[first, signed(second)]], dtype=torch.int32)
    assert exponential(keys, token + 1)[0, token] > 16
    logits = torch.full((1, 20), -torch.inf)
    logits[0, token] = 0
    arguments = (each.to(device) for each in (logits, torch.ones(1), keys, torch.full((1,), -torch.inf)))
    assert operators.race(*arguments).tolist() == [token]  # type: ignore[attr-defined]


def test_the_kernel_finds_winners_of_flat_logits(device: torch.device) -> None:
    """All tokens alike, so that the variates decide alone, and the nearest times of many are told apart."""
    keys = torch.randint(-(2**31), 2**31, (64, 2), dtype=torch.int32)
    arguments = [
        each.to(device) for each in (torch.zeros(64, 4096), torch.ones(64), keys, torch.full((64,), -torch.inf))
    ]
    assert torch.equal(TritonOperators.race(*arguments), reference.race(*arguments))
