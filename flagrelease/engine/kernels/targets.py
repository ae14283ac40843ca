"""What kernels are compiled for: a target's sizes, from the table below, and what it can do.

Triton's driver names the target by backend and architecture, as ("cuda", 90) or ("hip", "gfx942"); nothing else asks
for it. Numbers of two backends have nothing in common: AMD's torch answers as torch.cuda and calls gfx942 compute
capability (9, 4), and other vendors' forks number theirs alike: MetaX ("maca", 80), Iluvatar ("corex", 71), Moore
Threads ("musa", 31).

Of the sizes Hopper's were measured (benchmarks/engine-speed_h100-h200_2026-11-22.md). They decide how work is cut, and
with it the order of additions. So they belong to the architecture: an H20, which has fewer multiprocessors, computes
the bits of an H200. The other rows come from the vendors' documents, with one program for each multiprocessor. A target
without a row takes Hopper's.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from flagrelease.engine.kernels.interpreter import INTERPRETED

KIB = 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one chip.

    Attributes:
        multiprocessors: that it has (AMD: compute units).
        filled: programs that keep it busy.
        shared_memory: bytes that one program may have, and about as many all programs on a multiprocessor together.
        source: of the numbers.
    """

    multiprocessors: int
    filled: int
    shared_memory: int
    source: str

    def stages(self, most: int, size: int) -> int:
        """How many steps of a loop may be on their way at once, `most` at most, when each takes `size` bytes."""
        return max(1, min(most, self.shared_memory // size))


_CUDA = "CUDA C++ Programming Guide, Technical Specifications per Compute Capability; "
_ROCM = "rocm.docs.amd.com, AMD GPU specifications: "
HOPPER = Sizes(132, 128, 227 * KIB, _CUDA + "H100 SXM and H200; `filled` measured on both")
SIZES: dict[tuple[str, int | str], Sizes] = {
    ("cuda", 80): Sizes(108, 108, 163 * KIB, _CUDA + "A100 whitepaper"),
    ("cuda", 86): Sizes(84, 84, 99 * KIB, _CUDA + "A40, RTX A6000: GA102 whitepaper"),
    ("cuda", 89): Sizes(142, 142, 99 * KIB, _CUDA + "L40S, RTX 6000 Ada: Ada whitepaper"),
    ("cuda", 90): HOPPER,
    ("cuda", 100): Sizes(148, 148, 227 * KIB, _CUDA + "B200: Blackwell tuning guide"),
    ("cuda", 120): Sizes(188, 188, 99 * KIB, _CUDA + "RTX PRO 6000: RTX Blackwell PRO whitepaper"),
    ("hip", "gfx90a"): Sizes(110, 110, 64 * KIB, _ROCM + "MI250X, one GCD"),
    ("hip", "gfx942"): Sizes(304, 304, 64 * KIB, _ROCM + "MI300X"),
    ("hip", "gfx950"): Sizes(256, 256, 160 * KIB, _ROCM + "MI355X"),
    ("hip", "gfx1201"): Sizes(64, 64, 64 * KIB, _ROCM + "RX 9070 XT"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A backend of Triton and an architecture; backend "" is the CPU interpreter, or no device at all."""

    backend: str
    arch: int | str

    @property
    def sizes(self) -> Sizes:
        """From the table; Hopper's where it has no row."""
        return SIZES.get((self.backend, self.arch), HOPPER)

    @property
    def _nvidia(self) -> int:
        """NVIDIA's compute capability, 90 for 9.0; 0 of all other backends."""
        return self.arch if self.backend == "cuda" and isinstance(self.arch, int) else 0

    @property
    def ptx(self) -> bool:
        """Whether kernels become PTX, so that inline assembly may be written in it."""
        return self.backend == "cuda"

    @property
    def multiplies_bf16_pairs(self) -> bool:
        """Whether PTX has `mul.bf16x2`: from 9.0 on (PTX ISA, `mul`)."""
        return self._nvidia >= 90

    @property
    def starts_early(self) -> bool:
        """Whether a kernel can be set up while the one before it runs: from 9.0 on, by Triton from 3.4 on."""
        return self._nvidia >= 90 and hasattr(tl.extra.cuda, "gdc_wait")

    @property
    def multiplies_from_shared_memory(self) -> bool:
        """Whether the matrix unit takes operands from 200 KiB of shared memory, as Hopper's `wgmma` does; the
        interpreter does all that Hopper does."""
        return self._nvidia == 90 or bool(INTERPRETED.value)

    @property
    def sums_in_tensor_memory(self) -> bool:
        """Whether the matrix unit adds up in memory of its own: `tcgen05`, 10.x and 11.x (PTX ISA)."""
        return 100 <= self._nvidia < 120

    @property
    def has_e4m3(self) -> bool:
        """Whether Triton compiles kernels with E4M3, by its backend's options; the interpreter has every type."""
        if not self.backend:
            return True
        options = make_backend(GPUTarget(self.backend, self.arch, 32)).parse_options({})
        return declares_e4m3(options)


def declares_e4m3(options: Any) -> bool:
    """Whether the options of a backend, which vendors' forks have too, name the type."""
    if not hasattr(options, "supported_fp8_dtypes"):  # before Triton 3.1
        return bool(getattr(options, "allow_fp8e4nv", False))
    return "fp8e4nv" in options.supported_fp8_dtypes


def _current() -> Target:
    if INTERPRETED.value:
        return Target("", 0)
    try:
        target = triton.runtime.driver.active.get_current_target()
    except RuntimeError:  # no device that Triton knows: kernels are imported, but not launched
        return Target("", 0)
    return Target(target.backend, target.arch)


TARGET = _current()
