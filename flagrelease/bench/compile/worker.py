"""Compiles for one target: `python -m flagrelease.bench.compile.worker`, started by `bench compile` for each.

A process of its own, because Triton and the kernels decide what the target is when they are imported. It reads a
request from stdin and prints a JSON document: {"triton": version, "launches": [..]}.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any


def compile_launches(request: dict[str, Any]) -> dict[str, Any]:
    """The document for a request: target, dimensions, numerics, batches, context, prompts."""
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # for debuggers; it takes a tenth of the time
    from flagrelease.bench.compile.record import Recorder
    from flagrelease.bench.compile.standin import stand_in
    from flagrelease.bench.compile.target import CompileTarget

    target = CompileTarget.parse(request["target"])
    recorder = Recorder(target)
    stand_in(target, recorder)
    import triton

    from flagrelease.bench.compile.steps import run_steps

    for numerics in request["numerics"]:
        run_steps(
            request["dimensions"], numerics, tuple(request["batches"]), request["context"], tuple(request["prompts"]),
            recorder.begin,
        )  # fmt: skip
    return {"triton": triton.__version__, "launches": [asdict(launch) for launch in recorder.launches]}


if __name__ == "__main__":
    print(json.dumps(compile_launches(json.load(sys.stdin))))
