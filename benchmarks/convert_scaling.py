"""What more workers are worth in convert and verify, of one build or of two side by side. See `convert.py --scale`.

Every run is the command line in a process of its own, so its start is counted. Two builds take turns. Beside
the clock stands the processor time of the process, and what it is of the floor: reading the source, SHA-256 of the
release and BLAKE3 of the source and of the release's tensors, each once, on one core, measured in the same call. Both
builds must write the same tensor files; each verifies what it has written itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from convert import BLOCK, ROOT, commit, flash_config, hash_rate, machine

from flagrelease.model.v4.synthetic import write_checkpoint

TINY = ROOT / "examples" / "tiny" / "flagrelease-tiny-v4"


@dataclass(frozen=True)
class Run:
    """Seconds by the clock and of processors, and the largest resident memory in bytes."""

    seconds: float
    processor: float
    memory: int


def command_line(build: Path, words: list[str]) -> Run:
    """Run `flagrelease` of the build in this folder."""
    beside = os.environ.get("PYTHONPATH", "").split(os.pathsep)[
        1:
    ]  # where packages are, behind the tree that runs this
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(build), *beside]), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "flagrelease", *words], cwd=build, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        sys.exit(f"{build.name}: flagrelease {' '.join(words)} failed:\n{said}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def median(runs: list[Run]) -> Run:
    """Medians of the times, the most memory."""
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.processor for run in runs),
        max(run.memory for run in runs),
    )


def floor(source: Path, release: Path) -> tuple[float, float, float]:
    """Processor seconds on one core of reading the source, of SHA-256 and of BLAKE3. Cut tensors count once."""
    buffer = bytearray(BLOCK)
    manifest = json.loads((release / "manifest.json").read_text())
    made = sum(_bytes(one["dtype"], one["shape"]) for one in manifest["tensors"].values())

    def hashed(algorithm: object, count: int) -> float:
        begun = time.process_time()
        for at in range(0, count, BLOCK):
            algorithm.update(memoryview(buffer)[: min(BLOCK, count - at)])  # type: ignore[attr-defined]
        return time.process_time() - begun

    begun, read = time.process_time(), 0
    for path in source.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                read += count
    reading = time.process_time() - begun
    written = sum(path.stat().st_size for path in release.glob("*.safetensors"))
    return reading, hashed(hashlib.sha256(), written), hashed(blake3(), read + made)


def _bytes(dtype: str, shape: list[int]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    bits = {"F4": 4, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16}.get(dtype, 8)
    return elements * bits // 8


def tensor_digests(release: Path) -> dict[str, str]:
    """SHA-256 of the tensor files, as the manifest records them."""
    files = json.loads((release / "manifest.json").read_text())["files"]
    return {one["path"]: one["sha256"] for one in files if one["path"].endswith(".safetensors")}


def scale(options: argparse.Namespace, work: Path) -> None:
    """Run everything and print Markdown."""
    source = work / "source"
    write_checkpoint(source, flash_config(options.layers, options.experts, options.vocabulary))
    builds = {"this": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    for name, build in builds.items():  # the first run of a build compiles what Python or numba keeps on disk
        command_line(build, ["convert", str(TINY), "--target", "bf16:mp8", "--out", str(work / f"warm-{name}")])
    _print_head(options, builds)
    start = {name: [] for name in builds}  # type: dict[str, list[Run]]
    for _ in range(options.repeat):
        for name, build in builds.items():
            out = work / "start"
            start[name].append(command_line(build, ["convert", str(TINY), "--target", "bf16:mp8", "--out", str(out)]))
            shutil.rmtree(out)
    _print_rows(
        "convert", "the small model, 29 MB: mostly start", "all", {n: median(r) for n, r in start.items()}, None
    )
    for target in options.targets:
        _scale_target(options, work, source, builds, target)


def _scale_target(options: argparse.Namespace, work: Path, source: Path, builds: dict[str, Path], target: str) -> None:
    folder = target.replace(":", "-")
    least: float | None = None
    for workers in sorted(options.scale):
        times = options.repeat if workers == max(options.scale) else 1
        converts: dict[str, list[Run]] = {name: [] for name in builds}
        verifies: dict[str, list[Run]] = {name: [] for name in builds}
        digests = {}
        for _ in range(times):
            for name, build in builds.items():
                out = work / "out"
                words = ["--workers", str(workers)]
                converting = ["convert", str(source), "--target", target, "--out", str(out), *words]
                converts[name].append(command_line(build, converting))
                digests[name] = tensor_digests(out / folder)
                if options.verify and workers == max(options.scale):
                    verifying = ["verify", str(out / folder), "--source", str(source), *words]
                    verifies[name].append(command_line(build, verifying))
                if least is None:
                    parts = floor(source, out / folder)
                    least = sum(parts)
                    size = sum(path.stat().st_size for path in (out / folder).glob("*.safetensors")) / 1e9
                    split = zip(("read", "SHA-256", "BLAKE3"), parts, strict=True)
                    said = ", ".join(f"{what} {one:.1f}" for what, one in split)
                    what = f"{target}: {len(digests[name])} files, {size:.1f} GB"
                    print(f"| floor ({said}) | {what} | 1 | | | {least:.1f} | 1.00 | | |")
                shutil.rmtree(out)
        if len({tuple(sorted(one.items())) for one in digests.values()}) != 1:
            sys.exit(f"{target}: the builds do not write the same tensor files")
        _print_rows("convert", target, str(workers), {n: median(r) for n, r in converts.items()}, least)
        if verifies["this"]:
            _print_rows("verify --source", target, str(workers), {n: median(r) for n, r in verifies.items()}, None)


def _print_head(options: argparse.Namespace, builds: dict[str, Path]) -> None:
    said = " and ".join(f"`{name}` in {build}" for name, build in builds.items())
    print(f"- command: `python benchmarks/convert.py {' '.join(sys.argv[1:])}`")
    print(f"- machine: {machine()}; commit {commit()}; load {os.getloadavg()[0]:.1f} at the beginning; builds: {said}")
    print(f"- the most workers: median of {options.repeat}, others once; SHA-256 {hash_rate():.2f} GB/s on one core\n")
    print("| what | of | workers | build | s | CPU s | CPU / floor | peak RSS | times as fast |")
    print("|---|---|---|---|---|---|---|---|---|")


def _print_rows(what: str, of: str, workers: str, rows: dict[str, Run], least: float | None) -> None:
    for name, row in rows.items():
        ratio = "" if least is None else f"{row.processor / least:.2f}"
        faster = f"{rows['beside'].seconds / row.seconds:.2f}" if name == "this" and "beside" in rows else ""
        memory = f"{row.memory / 2**30:.2f} GiB"
        times = f"{row.seconds:.2f} | {row.processor:.1f} | {ratio}"
        print(f"| {what} | {of} | {workers} | {name} | {times} | {memory} | {faster} |", flush=True)
