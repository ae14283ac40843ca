"""What triton-ascend makes of the engine's kernels, as far as its wheel goes without CANN.

The front end makes Triton IR, and `triton-adapter-opt` of the wheel makes linalg of it, which `bishengir-compile`
(of CANN, not in the wheel) would compile. So this shows what the first two refuse. The wheel owns the package
`triton`, so it gets a folder of its own, never an environment that has Triton:

    pip install --no-deps --target /tmp/ascend triton-ascend==3.2.0 pybind11
    PYTHONPATH=/tmp/ascend python benchmarks/lower_for_ascend.py [native] [bf16]

prints a table of the operators' kernels for a page: how many launches become linalg, and why others do not.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

from triton.backends.ascend import compiler

from flagrelease.bench.compile.standin import stand_in
from flagrelease.bench.compile.target import CompileTarget

LAST = "ConvertLinalgRToBinary"  # how triton-ascend calls the stage that needs CANN
found: dict[tuple[str, str], Counter[str]] = {}
operator = ["?"]


class LoweredError(RuntimeError):
    """Raised in place of the stage that needs CANN."""


def stop(*_: Any) -> None:
    """Stand in for that stage."""
    raise LoweredError


def lower(kernel: str, launch: Callable[[], Any], options: dict[str, Any]) -> None:
    """One launch; its wheel raises errors of its own, which name the stage."""
    try:
        launch()
    except Exception as error:  # noqa: BLE001 - of a compiler under test, whatever it raises is the result
        found.setdefault((operator[0], kernel), Counter())[reason(error)] += 1


def reason(error: Exception) -> str:
    """Empty if only CANN was missing."""
    stage = getattr(error, "stage_name", None)
    if stage == LAST:
        return ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if stage is None:
        return f"front end: {lines[-1] if lines else type(error).__name__}"
    said = [line.split("error: ")[1] for line in lines if "error: " in line]
    return f"adapter: {said[0] if said else lines[-1]}"


def tell(name: str) -> None:
    """Launches that follow are of this operator."""
    operator[0] = name


def main() -> None:
    """Lower what a step of one and of 16 rows and a prompt of 512 tokens launch, by each of the named numerics."""
    from flagrelease.bench.compile.steps import run_steps

    for numerics in sys.argv[1:] or ["native", "bf16"]:
        run_steps("flash", numerics, (1, 16), 4096, (512,), tell)
    print("| operator | kernel | launches that become linalg | why others do not |\n|---|---|---|---|")
    for (name, kernel), reasons in sorted(found.items()):
        why = "; ".join(sorted(text.replace("|", "/") for text in reasons if text))
        print(f"| {name} | {kernel} | {reasons['']} of {reasons.total()} | {why} |")


if __name__ == "__main__":
    compiler.linalg_to_bin_enable_npu_compile_A2_A3 = stop
    stand_in(CompileTarget("npu", "Ascend910B3"), lower)
    main()
