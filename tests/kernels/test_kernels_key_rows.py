"""Keys that are stored as codes are, read back, the keys that caches held in BF16: to the bit, whatever they are.

Expected values come from the definitions of E4M3, E2M1 and E8M0, and from the plain caches' own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ldexp
from typing import Any

import pytest
import torch
from coded_cases import CODED, CodedCase
from decoding_cases import WRITTEN
from kernel_comparison import assert_same
from test_kernels_decoding import numbers
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.attention import choose_entries, decode_attention
from flagrelease.engine.kernels.interpreter import INTERPRETED
from flagrelease.engine.kernels.reference.key_rows import pack_index_keys, pack_keys, unpack_index_keys, unpack_keys
from flagrelease.engine.kernels.triton_operators import TritonOperators

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
WIDTH = 128


def e4m3(code: int) -> float:
    """By its definition: a sign, four bits of exponent with bias 7, three of mantissa; no infinities."""
    exponent, mantissa = code >> 3 & 15, code & 7
    size = ldexp(mantissa, -9) if exponent == 0 else ldexp(8 + mantissa, exponent - 10)
    return -size if code >> 7 else size


def e2m1(code: int) -> float:
    """By its definition: a sign, two bits of exponent with bias 1, one of mantissa."""
    exponent, mantissa = code >> 1 & 3, code & 1
    size = ldexp(mantissa, -1) if exponent == 0 else ldexp(2 + mantissa, exponent - 2)
    return -size if code >> 3 else size


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16)


@pytest.mark.parametrize(("value", "codes", "exponents"), [(e4m3, 256, range(105, 248)), (e2m1, 16, range(1, 254))])
def test_every_code_under_every_scale_is_a_number_of_bf16(
    value: Callable[[int], float], codes: int, exponents: range
) -> None:
    """The exponents are those that rounding gives: from its floor of a group's maximum to the largest BF16 number."""
    values = torch.tensor([value(code) for code in range(codes) if value is e2m1 or code & 127 != 127]).double()
    scales = torch.tensor([ldexp(1, exponent - 127) for exponent in exponents]).double()
    exact = values[None] * scales[:, None]
    finite = exact.abs() < 2.0**128  # 256 times the largest scale rounds to infinity, as a product in FP32 does
    assert torch.equal(exact[finite], exact[finite].bfloat16().double())
    assert bool(exact[~finite].bfloat16().isinf().all())


@pytest.mark.parametrize("exponent", [105, 106, 127, 134, 246])
def test_a_row_reads_as_its_definition_says(exponent: int) -> None:
    code = torch.arange(256, dtype=torch.uint8)
    code = code[code & 127 != 127]  # NaN
    rows = torch.zeros(len(code), 208, dtype=torch.uint8)
    rows[:, 3], rows[:, 128 + 64] = code, exponent
    rows[:, 64 + 5], rows[:, 128 + 5] = 0x34, 0x12  # a rotated column: low and high byte
    keys = unpack_keys(rows, WIDTH)
    assert keys[:, 3].tolist() == [e4m3(int(c)) * ldexp(1, exponent - 127) for c in code]
    assert bits(keys)[:, 64 + 5].tolist() == [0x1234] * len(code)
    rows = torch.zeros(16, 80, dtype=torch.uint8)
    rows[:, 20] = torch.arange(16, dtype=torch.uint8) * 16 + torch.arange(15, -1, -1, dtype=torch.uint8)
    rows[:, 64 + 1] = exponent
    keys = unpack_index_keys(rows, WIDTH)
    assert keys[:, 40].tolist() == [e2m1(15 - c) * ldexp(1, exponent - 127) for c in range(16)]
    assert keys[:, 41].tolist() == [e2m1(c) * ldexp(1, exponent - 127) for c in range(16)]


def values() -> dict[str, Tensor]:
    """Keys of all kinds, [.., WIDTH]. "patterns" are all 65,280 finite ones, in groups of every company."""
    generator = torch.Generator().manual_seed(7)
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    patterns = patterns[patterns.view(torch.bfloat16).isfinite()]
    order = torch.randperm(len(patterns), generator=generator)
    spread = torch.randn(400, WIDTH, generator=generator) * 2.0 ** torch.randint(
        -130, 120, (400, 1), generator=generator
    )
    return {
        "patterns, sorted": patterns.view(torch.bfloat16).view(-1, WIDTH),
        "patterns, mixed": patterns[order].view(torch.bfloat16).view(-1, WIDTH),
        "rows of one magnitude": spread.bfloat16(),
        "zeros": torch.stack((torch.zeros(WIDTH), -torch.zeros(WIDTH))).bfloat16(),
        "largest": torch.full((1, WIDTH), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16),
        "at the floor": torch.full((2, WIDTH), 1e-4).bfloat16() * torch.tensor([[0.5], [1.0]]).bfloat16(),
    }


def rounded(x: Tensor) -> Tensor:
    """What a BF16 cache holds of keys x under native numerics."""
    return torch.cat((reference.act_quant_roundtrip(x[..., :-64].contiguous(), 64), x[..., -64:]), -1)


@pytest.mark.parametrize("kind", values())
def test_what_is_read_back_is_what_bf16_held(kind: str) -> None:
    x = values()[kind]
    assert torch.equal(bits(unpack_keys(pack_keys(x), WIDTH)), bits(rounded(x)))
    assert torch.equal(bits(unpack_index_keys(pack_index_keys(x), WIDTH)), bits(reference.fp4_act_quant_roundtrip(x)))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_does_not_become_finite(number: float) -> None:
    x = torch.ones(2, WIDTH, dtype=torch.bfloat16)
    x[0, 3] = number
    for keys in (unpack_keys(pack_keys(x), WIDTH), unpack_index_keys(pack_index_keys(x), WIDTH)):
        assert not bool(keys[0, 0].isfinite())
        assert bool(keys[1].isfinite().all())


DEFECTS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("a code", lambda rows: _xor(rows, 3, 1)),
    ("a sign", lambda rows: _xor(rows, 9, 128)),
    ("a low byte", lambda rows: _xor(rows, WIDTH - 1, 1)),
    ("a high byte", lambda rows: _xor(rows, WIDTH + 1, 1)),
    ("a scale", lambda rows: _xor(rows, WIDTH + 64, 1)),
]


def _xor(rows: Tensor, place: int, mask: int) -> Tensor:
    rows = rows.clone()
    rows[..., place] ^= mask
    return rows


@pytest.mark.parametrize(("what", "harm"), DEFECTS)
def test_every_byte_of_a_key_counts(what: str, harm: Callable[[Tensor], Tensor]) -> None:
    x = values()["rows of one magnitude"]
    assert not torch.equal(bits(unpack_keys(harm(pack_keys(x)), WIDTH)), bits(rounded(x)))


def test_every_byte_of_an_index_key_counts() -> None:
    x = values()["rows of one magnitude"]
    rows = pack_index_keys(x)
    assert rows.shape[-1] == 80
    for place in range(64 + 4):
        assert not torch.equal(unpack_index_keys(_xor(rows, place, 16), WIDTH), unpack_index_keys(rows, WIDTH))
    for place in range(68, 80):  # what rows are filled up with
        assert not bool(rows[:, place].any())


def interpretable(x: Tensor) -> Tensor:
    """Without the subnormal numbers of BF16 where kernels are interpreted: numpy's copy of Triton loads others."""
    return x.where(x.abs() >= 2.0**-126, 0) if INTERPRETED.value else x


@pytest.mark.parametrize("kind", values())
def test_kernels_store_the_same_bytes(kind: str, device: torch.device) -> None:
    x = interpretable(values()[kind])[:120].to(device)
    for name in ("pack_keys", "pack_index_keys"):
        assert torch.equal(getattr(TritonOperators, name)(x), getattr(reference, name)(x))


@pytest.mark.parametrize(
    "case",
    [pytest.param(one, marks=pytest.mark.slow) if "," in one.label else one for one in CODED],  # of many tiles
    ids=lambda case: f"{case.operator}: {case.label}",
)
@pytest.mark.parametrize("operators", [reference, TritonOperators], ids=["definition", "kernel"])
def test_operators_give_over_codes_what_they_give_over_bf16(
    operators: Any, case: CodedCase, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of codes and a plain one of the same values, in the same operator and tiles: nothing differs by a bit."""
    for module in (decode_attention, choose_entries):  # tiles of another size add up in another order
        tile = module._tile
        monkeypatch.setattr(module, "_tile", lambda *n, coded, single, tile=tile: tile(*n, coded=True, single=single))
    arguments = tuple(a.to(device) if isinstance(a, Tensor) else a for a in case.make())
    rows, plain = case.coded(arguments), case.rounded(arguments)
    results = [getattr(operators, case.operator)(*each) for each in (rows, plain)]
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in results), strict=True):
        if case.operator == "choose_entries":
            a, b = a.sort(-1).values, b.sort(-1).values  # in any order
        if case.index and case.operator == "indexer_scores":
            assert_same(a, b)  # even columns are added up before odd ones
        else:
            assert a is b is None or torch.equal(a, b)
    for written in WRITTEN.get(case.operator, ()):
        assert torch.equal(numbers(case.operator, rows, written), plain[written])
