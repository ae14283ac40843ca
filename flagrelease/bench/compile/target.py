"""`CompileTarget`: what to compile for, as users write it: `cuda:90`, `hip:gfx942`."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.errors import UsageError

# NVIDIA's that are in use; AMD's of data centres, and a card; Hygon's DCU is nearest to gfx942.
TARGETS = ("cuda:80", "cuda:90", "cuda:100", "cuda:120", "hip:gfx90a", "hip:gfx942", "hip:gfx950", "hip:gfx1201")
_WIDE = ("maca", "corex")  # backends of MetaX and Iluvatar, whose drivers say 64


@dataclass(frozen=True, slots=True)
class CompileTarget:
    """A backend of Triton and an architecture, by name or number."""

    backend: str
    arch: int | str

    @classmethod
    def parse(cls, text: str) -> CompileTarget:
        """Of `backend:architecture`.

        Raises:
            UsageError: it is not of that form, or NVIDIA's architecture is no number.
        """
        backend, colon, arch = text.partition(":")
        if not (backend.isidentifier() and colon and arch.isalnum()) or (backend == "cuda" and not arch.isdecimal()):
            raise UsageError(f"--target {text!r}: backend:architecture is needed, as cuda:90 or hip:gfx942")
        return cls(backend, int(arch) if arch.isdecimal() else arch)

    @property
    def warp(self) -> int:
        """Threads that run in step: 64 on AMD's gfx9 and where `_WIDE` says so, else 32."""
        return 64 if self.backend in _WIDE or str(self.arch).startswith("gfx9") else 32

    def __str__(self) -> str:
        """As users write it."""
        return f"{self.backend}:{self.arch}"
