"""Compile every kernel that the tests' cases launch for a target, on a machine without a GPU.

The interpreter accepts what compilers refuse: a name of two shapes in two branches, say. Nothing runs: a launch is
compiled for the types of its arguments, which are tensors of the CPU (flagrelease/bench/compile/standin.py). To be run
by itself, since Triton and the kernels decide at import what they are for:

    python tests/kernels/compile_cases.py cuda:90 [operator ..] [--dtype float32|other] [--changed FILE ..]

prints {"cases": count, "first": operators, "launches": count, "failures": {case: the last line of the error}} as JSON.
The case "planted" must fail. Of operators whose launch is in a changed file one case comes first, whether they are
named or not; if it fails, the rest is not compiled.
"""

# ruff: noqa: E402  (modules look at what is set here when they are imported)

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # for debuggers; it takes a tenth of the time

import torch
import triton
import triton.language as tl

from flagrelease.bench.compile.standin import stand_in
from flagrelease.bench.compile.target import CompileTarget

parser = argparse.ArgumentParser()
parser.add_argument("target")
parser.add_argument("operators", nargs="*")
parser.add_argument("--dtype", choices=["float32", "other"], help="of the activations; both if not given")
parser.add_argument("--changed", nargs="*", default=[], help="files, by their paths in the repository")
asked = parser.parse_args()
target = CompileTarget.parse(asked.target)
MOST_CHANGED = 6  # operators, when a file is changed that has many: for AMD a case takes several seconds
launches = 0


def _counted(kernel: str, launch: Callable[[], Any], options: dict[str, Any]) -> Any:
    global launches
    launches += 1
    return launch()


stand_in(target, _counted)

from coded_cases import CODED_CASES
from decoding_cases import DECODING_CASES
from kernel_cases import CASES, Case, moe
from test_kernels_decoding import arranged
from v41_cases import V41_CASES

from flagrelease.engine.kernels.exchange import Exchange, sum_over_ranks
from flagrelease.engine.kernels.experts.widened_experts import widened_expert_outputs
from flagrelease.engine.kernels.norms.hc_post_mixes import hc_post_mixes_over_ranks
from flagrelease.engine.kernels.quantisation.fp4_codes import arrange_experts
from flagrelease.engine.kernels.triton_operators import TritonOperators


@triton.jit
def _two_shapes(x_ptr):
    if tl.program_id(0) == 0:
        at = tl.arange(0, 16)
        tl.store(x_ptr + at, at)
    else:
        at = tl.arange(0, 32)
        tl.store(x_ptr + at, at)


def _planted() -> None:
    _two_shapes[(2,)](torch.zeros(32, dtype=torch.int32))


def _launch(case: Case) -> None:
    getattr(TritonOperators, case.operator)(*arranged(case, case.arguments(torch.device("cpu"))))


def _exchanges(ranks: int, rows: int) -> None:
    """The kernels that sum over ranks: no operators, for they have no definition on one rank."""
    parts = torch.zeros(3, rows, 256)
    memory, address = torch.zeros(2, ranks, 1 << 15, dtype=torch.int64), torch.zeros(ranks, dtype=torch.int64)
    exchange = Exchange(memory, address, torch.zeros(1, dtype=torch.int64), ranks - 1, [memory])
    sum_over_ranks(parts, exchange, torch.bfloat16)
    x, post, comb = torch.zeros(rows, 4, 256).bfloat16(), torch.zeros(rows, 4), torch.zeros(rows, 4, 4)
    hc_post_mixes_over_ranks(parts, x, post, comb, torch.zeros(24, 4 * 256), exchange)


def _launch_widened() -> None:
    """The experts' kernels for so many tokens that no case has them."""
    x, ids, weights, experts, limit, _ = moe(128, 2, "fp4", torch.bfloat16, True, (2, 512, 512, 0))
    widened_expert_outputs(x, ids, weights, arrange_experts(experts), limit)


def _error(work: Callable[..., None], *args: Any) -> str | None:
    try:
        work(*args)
    except triton.CompilationError as error:
        return str(error).splitlines()[-1]
    return None


def _changed_first(cases: list[Case], changed: list[str]) -> list[Case]:
    modules = {file.removesuffix(".py").replace("/", ".") for file in changed}
    first: dict[str, Case] = {}
    for case in cases:
        if getattr(TritonOperators, case.operator).__module__ in modules:
            first.setdefault(case.operator, case)
    return list(first.values())[:MOST_CHANGED]


def _errors(cases: list[Case]) -> dict[str, str | None]:
    return {f"{case.operator}: {case.label}": _error(_launch, case) for case in cases}


def main(operators: list[str], dtype: str | None, changed: list[str]) -> dict[str, object]:
    every = [*CASES, *DECODING_CASES, *CODED_CASES, *V41_CASES]
    if dtype is not None:
        every = [case for case in every if ("float32" in case.label) == (dtype == "float32")]
    first = _changed_first(every, changed)
    rest = [case for case in every if case not in first and (not operators or case.operator in operators)]
    errors = _errors(first)
    if not any(errors.values()):
        errors |= _errors(rest)
        if not operators and dtype != "float32":
            errors["widened"] = _error(_launch_widened)
            # Their stores are PTX; other targets' ranks exchange by collectives (engine/peers.py).
            sizes = [(2, 1), (2, 64), (8, 1)] if target.backend == "cuda" else []
            errors |= {
                f"exchange of {rows} rows on {ranks} ranks": _error(_exchanges, ranks, rows) for ranks, rows in sizes
            }
    errors["planted"] = _error(_planted)
    failures = {name: error for name, error in errors.items() if error is not None}
    changed_operators = [case.operator for case in first]
    return {"cases": len(first) + len(rest), "first": changed_operators, "launches": launches, "failures": failures}


if __name__ == "__main__":
    print(json.dumps(main(asked.operators, asked.dtype, asked.changed)))
