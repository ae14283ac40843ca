"""Run by itself: imports torch and a vendor's module, and prints what they show, a JSON object a line, step by step.

Arguments: the torch device type, its module or "", its torch.distributed backend. Each line is printed when its step is
over, so that whoever started this knows at which step an import crashed or hung.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any


def tell(**facts: Any) -> None:
    """Print one step."""
    print(json.dumps(facts), flush=True)


def main(kind: str, module: str, backend: str) -> None:
    """All steps."""
    tell(step="import torch")
    torch = import_module("torch")
    tell(torch=torch.__version__)
    if module:
        tell(step=f"import {module}")
        tell(module=str(getattr(import_module(module), "__version__", "unknown")))
    tell(step=f"ask torch.{kind} for its devices")
    api: Any = getattr(torch, kind, None)
    count = int(api.device_count()) if api and api.is_available() else 0
    for index in range(count):
        size = getattr(api.get_device_properties(index), "total_memory", None)
        capability = getattr(api, "get_device_capability", lambda _: None)(index)
        tell(device={"name": str(api.get_device_name(index)), "bytes": size, "capability": capability})
    tell(step="ask torch.distributed for its backends")
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_backend_available(backend)
    version = torch.cuda.nccl.version() if there and backend == "nccl" and count else None
    tell(backend={"there": bool(there), "version": None if version is None else ".".join(map(str, version))})
    tell(step="import triton")
    try:
        triton = import_module("triton")
        tell(triton={"version": str(triton.__version__), "file": str(triton.__file__)})
    except ImportError as error:
        tell(triton={"error": str(error)})
    tell(step="done")


if __name__ == "__main__":
    main(*sys.argv[1:])
