"""What a compiled kernel says of the registers that a thread takes."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

_REGISTERS, _WORDS = 0x2F, 4  # EIATTR_REGCOUNT, and the form of attributes whose value follows their size
_AMD = re.compile(r"^\s*\.(vgpr_count|vgpr_spill_count):\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Registers:
    """Of a thread; `spilled`: of them, which lie in memory (None: the binary does not say)."""

    used: int
    spilled: int | None


def registers(asm: dict[str, Any]) -> Registers | None:
    """Of what Triton compiled, by the name of each stage; None where no stage tells them."""
    if "cubin" in asm:
        used = cubin_registers(asm["cubin"])
        return None if used is None else Registers(used, None)
    if "amdgcn" in asm:
        found = {name: int(number) for name, number in _AMD.findall(asm["amdgcn"])}
        return Registers(found["vgpr_count"], found["vgpr_spill_count"]) if len(found) == 2 else None
    return None


def cubin_registers(cubin: bytes) -> int | None:
    """The largest register count in `.nv.info` of an ELF file of 64 bits, as cuobjdump's --dump-resource-usage says."""
    offset, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 0x28)
    headers = [struct.unpack_from("<IIQQQQ", cubin, offset + size * index) for index in range(count)]
    strings = headers[names][4]
    for name, _, _, _, start, length in headers:
        end = cubin.index(b"\0", strings + name)
        if cubin[strings + name : end] == b".nv.info":
            return _most(cubin[start : start + length])
    return None


def _most(info: bytes) -> int | None:
    """Each attribute: form, number, size of what follows (in the form that registers have), symbol and value."""
    at, found = 0, list[int]()
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == _WORDS:
            if attribute == _REGISTERS:
                found.append(struct.unpack_from("<II", info, at)[1])
            at += size
    return max(found, default=None)
