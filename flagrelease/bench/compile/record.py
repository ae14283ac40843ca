"""What became of each launch: the compiled kernel's needs, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flagrelease.bench.compile.binary import registers
from flagrelease.bench.compile.target import CompileTarget


@dataclass(frozen=True, slots=True)
class CompiledLaunch:
    """One kernel with one set of constants.

    Attributes:
        operator: that launched it.
        kernel: its function's name.
        shared: bytes of shared memory that a program takes; None where the target's compiler does not say.
        registers: of a thread; None where the binary does not say.
        spilled: of them, which lie in memory.
        failure: why the chip cannot be given it: the last line of the compiler's error, or the shared memory that it
            takes beyond what the target has.
    """

    operator: str
    kernel: str
    shared: int | None
    registers: int | None
    spilled: int | None
    failure: str | None


class Recorder:
    """Compiles launches one by one, and keeps what came of each kernel, once for each operator that launches it."""

    def __init__(self, target: CompileTarget) -> None:
        """`target`: what is compiled for, whose shared memory bounds what a kernel may take."""
        self.launches: list[CompiledLaunch] = []
        self._operator = "?"
        self._target = target
        self._seen: set[object] = set()

    def begin(self, operator: str) -> None:
        """Launches that follow are of this operator."""
        self._operator = operator

    def __call__(self, kernel: str, launch: Callable[[], Any], options: dict[str, Any]) -> Any:
        """See `stand_in`. What the compiler refuses is recorded, and the step goes on: nothing reads its result."""
        import triton

        compiled, failure = None, None
        try:
            compiled = launch()
        # The front end raises the first, passes and assemblers the second; forks raise others of their own below it.
        except (triton.CompilationError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            failure = _last_line(error)
        same = compiled.hash if compiled is not None else (failure, str(sorted(map(str, options.items()))))
        seen = self._operator, kernel, same
        if seen not in self._seen:
            self._seen.add(seen)
            self.launches.append(self._launch(kernel, compiled, failure))
        return compiled

    def _launch(self, kernel: str, compiled: Any, failure: str | None) -> CompiledLaunch:
        if compiled is None:
            return CompiledLaunch(self._operator, kernel, None, None, None, failure)
        shared, found = getattr(compiled.metadata, "shared", None), registers(compiled.asm)
        used, spilled = (None, None) if found is None else (found.used, found.spilled)
        return CompiledLaunch(self._operator, kernel, shared, used, spilled, self._too_large(shared))

    def _too_large(self, shared: int | None) -> str | None:
        from flagrelease.engine.kernels.targets import SIZES

        sizes = SIZES.get((self._target.backend, self._target.arch))
        if shared is None or sizes is None or shared <= sizes.shared_memory:
            return None
        return f"takes {shared} bytes of shared memory; {self._target} has {sizes.shared_memory}"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
