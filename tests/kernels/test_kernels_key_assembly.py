"""The assembly that decodes cached keys on Hopper, run step by step without a GPU: every byte under every scale.

The interpreter takes the other branch of these kernels, and a test on a GPU runs on few machines.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from flagrelease.engine.kernels.attention.key_rows import _PTX_E2M1, _PTX_E4M3
from flagrelease.engine.kernels.reference.quantisation import e2m1_values

M32 = 0xFFFFFFFF


def run(assembly: str, registers: dict[str, Tensor], defect: tuple[str, str] = ("", "")) -> dict[str, Tensor]:
    """Registers (int64 tensors of 32-bit words) after the program; `$n` are the operands. As the PTX manual defines."""
    for line in re.sub(r"\.reg[^;]*;|[{}]", "", assembly.replace(*defect)).split(";"):
        if line.strip():
            name, *operands = re.split(r"[\s,]+", line.strip())
            target, *sources = operands
            values = [registers[s] if s in registers else torch.tensor(int(s, 0)) for s in sources]
            registers[target] = step(name, values)
    return registers


def step(name: str, v: list[Tensor]) -> Tensor:
    if name == "mov.b32":
        return v[0]
    if name == "and.b32":
        return v[0] & v[1]
    if name == "or.b32":
        return v[0] | v[1]
    if name == "shl.b32":
        return (v[0] << v[1]) & M32
    if name == "shr.b32":
        return v[0] >> v[1]
    if name == "add.u32":
        return (v[0] + v[1]) & M32
    if name == "lop3.b32":  # bit by bit: bit 4a + 2b + c of the last operand
        table = [(v[3] >> row) & 1 for row in range(8)]
        rows = ((a, b, c) for a in (v[0], ~v[0]) for b in (v[1], ~v[1]) for c in (v[2], ~v[2]))
        return sum((a & b & c & M32) * table[7 - i] for i, (a, b, c) in enumerate(rows))  # type: ignore[return-value]
    if name == "prmt.b32":  # byte i is the byte of b:a that nibble i of c names, or with its bit 3 that one's sign
        both, chosen = v[0] | (v[1] << 32), [(v[2] >> 4 * i) & 15 for i in range(4)]
        taken = [((both >> 8 * (c & 7)) & 255, c >> 3) for c in chosen]
        each = [torch.where(sign != 0, (byte >> 7) * 255, byte) for byte, sign in taken]
        return sum(byte << 8 * i for i, byte in enumerate(each))  # type: ignore[return-value]
    assert name == "mul.rn.bf16x2", name
    halves = [[bf16((each >> shift) & 0xFFFF) for each in torch.broadcast_tensors(*v)] for shift in (0, 16)]
    low, high = (word(a * b) for a, b in halves)
    return low | (high << 16)


def bf16(half: Tensor) -> Tensor:
    return half.to(torch.int32).to(torch.int16).view(torch.bfloat16)


def word(x: Tensor) -> Tensor:
    return x.view(torch.int16).long() & 0xFFFF


def four(byte: Tensor) -> Tensor:
    """Four bytes of a register: b, b + 1, b + 2, b + 3."""
    return sum(((byte + i) & 255) << 8 * i for i in range(4))  # type: ignore[return-value]


def halves(registers: dict[str, Tensor], *names: str) -> Tensor:
    """The BF16 numbers of registers, [.., 2 a register]."""
    return torch.stack([bf16((registers[n] >> shift) & 0xFFFF) for n in names for shift in (0, 16)], -1)


def cases(exponents: range) -> tuple[Tensor, Tensor]:
    """Every byte under every scale, whose biased exponents are given: bytes, and two scales in a register."""
    byte, exponent = torch.meshgrid(torch.arange(256), torch.tensor(exponents), indexing="ij")
    return byte, (exponent << 7) | (exponent << 23)


def keys(defect: tuple[str, str] = ("", "")) -> tuple[Tensor, Tensor]:
    byte, scale = cases(range(105, 247))
    done = run(_PTX_E4M3.value, {"$2": four(byte), "$3": four(byte * 7), "$4": scale, "$5": scale}, defect)
    codes = torch.stack([(byte + i) & 255 for i in range(4)], -1).to(torch.uint8).view(torch.float8_e4m3fn)
    number = codes.float()  # NaN, which no key has, is 480 in assembly
    expected = (number * bf16(scale & 0xFFFF).float()[..., None]).bfloat16()
    valid = ~number.isnan()
    return halves(done, "$0", "$1")[valid], expected[valid]


def index_keys(defect: tuple[str, str] = ("", "")) -> tuple[Tensor, Tensor]:
    byte, scale = cases(range(1, 254))
    done = run(_PTX_E2M1.value, {"$4": four(byte), "$5": scale, "$6": scale}, defect)
    packed = torch.stack([(byte + i) & 255 for i in range(4)], -1).to(torch.uint8)
    expected = (e2m1_values(packed) * bf16(scale & 0xFFFF).float()[..., None]).bfloat16()
    even, odd = halves(done, "$0", "$1"), halves(done, "$2", "$3")
    return torch.stack((even, odd), -1).flatten(-2), expected


def same(both: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(both[0].view(torch.int16), both[1].view(torch.int16))


def test_codes_become_the_numbers_that_they_stand_for() -> None:
    assert same(keys())
    assert same(index_keys())


def test_where_the_scale_is_zero_two_bytes_are_a_number() -> None:
    low, high = torch.tensor([0x44332211]), torch.tensor([0x88776655])
    zero = torch.tensor([0])
    done = run(_PTX_E4M3.value, {"$2": low, "$3": high, "$4": zero, "$5": zero})
    assert [hex(int(done[name])) for name in ("$0", "$1")] == ["0x66225511", "0x88447733"]


def test_each_number_asks_its_own_scale() -> None:
    """Four numbers of several rows, one of which is not there: on a GPU its neighbours once were taken for bytes."""
    codes, high = torch.tensor([0x38383838]), torch.tensor([0x3F3F3F3F])  # 1.0, or 0x3F38 of two bytes
    for there in range(16):
        scales = [
            torch.tensor([sum(0x3F80 << 16 * half for half in (0, 1) if there >> 2 * i + half & 1)]) for i in (0, 1)
        ]
        done = run(_PTX_E4M3.value, {"$2": codes, "$3": high, "$4": scales[0], "$5": scales[1]})
        expected = [0x3F80 if there >> i & 1 else 0x3F38 for i in range(4)]
        assert [int(done[f"${i // 2}"]) >> 16 * (i % 2) & 0xFFFF for i in range(4)] == expected


def test_a_wrong_byte_of_a_table_or_selector_is_seen() -> None:
    for defect in (("0x40404040", "0x40404041"), ("0x7351", "0x7350"), ("shl.b32 s, t, 12", "shl.b32 s, t, 11")):
        assert not same(index_keys(defect))
    for defect in (("0x3424", "0x2434"), ("0x7B807B80", "0x7B007B80"), ("0x07F007F0", "0x07F007E0"), ("0xE4", "0xD8")):
        assert not same(keys(defect))
