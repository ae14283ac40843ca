"""`bench compile`: the engine's kernels by targets and Tritons, each pair in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

from flagrelease import __version__
from flagrelease.bench.compile.record import CompiledLaunch
from flagrelease.bench.compile.target import CompileTarget
from flagrelease.errors import ResourceError

_WORKER = "flagrelease.bench.compile.worker"


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """What to compile.

    Attributes:
        targets: what for.
        tritons: folders that have a package `triton` each, to be taken instead of the installed one; none: that one.
        dimensions: of the model, by name.
        numerics: policies whose steps are launched, one after the other.
        batches: rows of a step of decoding.
        context: tokens before it.
        prompts: tokens of the prompts that are read.
    """

    targets: tuple[str, ...]
    tritons: tuple[Path, ...]
    dimensions: str
    numerics: tuple[str, ...]
    batches: tuple[int, ...]
    context: int
    prompts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of one target by one Triton: launches in the order in which the engine makes them."""

    target: str
    triton: str
    launches: tuple[CompiledLaunch, ...]

    def of(self, operator: str) -> tuple[CompiledLaunch, ...]:
        """Those of one operator."""
        return tuple(launch for launch in self.launches if launch.operator == operator)

    @property
    def failures(self) -> tuple[CompiledLaunch, ...]:
        """Those that the chip cannot be given."""
        return tuple(launch for launch in self.launches if launch.failure is not None)


@dataclass(frozen=True, slots=True)
class CompileReport:
    """Of one run; no device took part."""

    date: str
    flagrelease: str
    request: CompileRequest
    columns: tuple[Compiled, ...]

    @property
    def operators(self) -> list[str]:
        """Those that launch anything, by name."""
        return sorted({launch.operator for column in self.columns for launch in column.launches})

    def document(self) -> dict[str, Any]:
        """As JSON."""
        request = asdict(self.request) | {"tritons": [str(folder) for folder in self.request.tritons]}
        return asdict(self) | {"request": request}


def compile_matrix(request: CompileRequest, say: Callable[[str], None]) -> CompileReport:
    """Compile for each target by each Triton.

    Args:
        request: what to compile.
        say: told what is compiled next.

    Raises:
        UsageError: a target that is none.
        ResourceError: a folder without Triton, or a compiler that ended the process.
    """
    for text in request.targets:
        CompileTarget.parse(text)
    for folder in request.tritons:
        if not (folder / "triton" / "__init__.py").is_file():
            raise ResourceError(f"--triton {folder}: it has no package triton; pip install --target makes one there")
    date, columns = datetime.now(timezone.utc).isoformat(timespec="seconds"), []
    tritons: tuple[Path | None, ...] = request.tritons or (None,)
    for triton, target in product(tritons, request.targets):
        say(f"bench compile: {target}, {'the installed Triton' if triton is None else triton}")
        columns.append(_compile(request, target, triton))
    return CompileReport(date, __version__, request, tuple(columns))


def _compile(request: CompileRequest, target: str, folder: Path | None) -> Compiled:
    """In a process of its own. What it has on stderr, warnings of compilers, is shown where it fails."""
    asked = asdict(request) | {"target": target, "tritons": []}
    paths = [*([] if folder is None else [str(folder.resolve())]), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-m", _WORKER], input=json.dumps(asked), capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ResourceError(f"compiling for {target}: the process ended with {result.returncode}: {last}")
    document = json.loads(result.stdout.splitlines()[-1])
    launches = tuple(CompiledLaunch(**launch) for launch in document["launches"])
    return Compiled(target, document["triton"], launches)
