"""How fast is convert, against the disk, the hash, and the scripts it replaces? All in one run.

    python benchmarks/convert.py                                # real V4-Flash dimensions, 3 layers, 48 experts
    python benchmarks/convert.py --peer FOLDER                  # beside FlagOS' convert_weight.py and convert.py
    python benchmarks/convert.py --target fp8:mp8 --repeat 5
    python benchmarks/convert.py --scale 1 4 16 --targets bf16:mp8 bf16:hf --verify --beside FOLDER --work /dev/shm

The last form measures what workers are worth, beside the build in FOLDER (convert_scaling.py).

The floor of a conversion is what it must do at least: write the bytes and hash them. `raw write` writes the same number
of bytes to as many files and nothing else; `raw write + SHA-256` also hashes them, with as many threads as convert has
workers. Sources are dropped from the page cache before each run. What a program reads by mapping a file is not counted
as read. Prints Markdown; copy it to benchmarks/convert_<machine>_<date>.md.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.model.v4.synthetic import write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.shard.writer import SequentialFile
from flagrelease.source.source import read_source

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 8 << 20


@dataclass(frozen=True)
class Measured:
    """One run. Bytes read are those asked of the system by all processes of the run, imports included."""

    seconds: float
    peak_rss: int = 0
    bytes_read: int = 0


def flash_config(layers: int, experts: int, vocabulary: int) -> dict[str, Any]:
    """V4-Flash with fewer layers, experts and words; all matrices have their real shapes."""
    config: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "configs" / "flash.json").read_text())
    ratios = [0, *[4, 128] * layers][:layers]
    return config | {
        "num_hidden_layers": layers, "num_hash_layers": 1, "compress_ratios": ratios, "num_nextn_predict_layers": 0,
        "n_routed_experts": experts, "vocab_size": vocabulary,
    }  # fmt: skip


def drop_from_cache(folder: Path) -> None:
    """Write back and forget the pages of all files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run(command: list[str], source: Path) -> Measured:
    """Run a command with a cold source; watch the memory and reading of its whole process tree."""
    drop_from_cache(source)
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    root = psutil.Process(process.pid)
    peak, reads = 0, dict[int, int]()
    while process.poll() is None:
        try:
            tree = [root, *root.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in tree))
            reads |= {member.pid: member.io_counters().read_chars for member in tree}
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.01)
    seconds = time.perf_counter() - begun
    if process.returncode:
        assert process.stderr is not None
        sys.exit(f"{command} failed:\n{process.stderr.read().decode()}")
    return Measured(seconds, peak, sum(reads.values()))


def raw_write(sizes: list[int], folder: Path) -> Measured:
    """Plain writes through the page cache, made safe at the end."""
    block = np.random.default_rng(0).integers(0, 256, BLOCK, dtype=np.uint8)
    begun = time.perf_counter()
    for number, size in enumerate(sizes):
        with (folder / f"raw{number}").open("wb", buffering=0) as file:
            for at in range(0, size, BLOCK):
                file.write(memoryview(block)[: min(BLOCK, size - at)])
            os.fsync(file.fileno())
    return Measured(time.perf_counter() - begun)


def raw_write_hashed(sizes: list[int], folder: Path, threads: int) -> Measured:
    """The writer of convert with nothing in front of it: direct writes and SHA-256."""
    block = np.random.default_rng(0).integers(0, 256, BLOCK, dtype=np.uint8)

    def write(number: int) -> None:
        size = sizes[number]
        with SequentialFile(folder / f"hashed{number}", size) as file:
            for at in range(0, size, BLOCK):
                file.append(block[: min(BLOCK, size - at)])
            file.finish()

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(len(sizes))))
    return Measured(time.perf_counter() - begun)


def hash_rate() -> float:
    """GB/s of SHA-256 on one core."""
    block = os.urandom(BLOCK)
    begun = time.perf_counter()
    for _ in range(50):
        hashlib.sha256(block).digest()
    return 50 * BLOCK / (time.perf_counter() - begun) / 1e9


def peer(folder: Path, source: Path, work: Path, experts: int, mp: int) -> tuple[Measured, Measured]:
    """FlagOS' two scripts, in one after the other."""
    bf16, cut = work / "peer-bf16", work / "peer-mp"
    weight = [sys.executable, str(folder / "convert_weight.py"), "--input-fp8-hf-path", str(source)]
    first = run([*weight, "--output-bf16-hf-path", str(bf16), "--device", "cpu"], source)
    second = [sys.executable, str(folder / "convert.py"), "--hf-ckpt-path", str(bf16), "--save-path", str(cut)]
    result = first, run([*second, "--n-experts", str(experts), "--model-parallel", str(mp)], bf16)
    shutil.rmtree(bf16)
    shutil.rmtree(cut)
    return result


def repeated(times: int, measure: Callable[[], Measured]) -> Measured:
    """The run of median time; the largest memory and reading of all."""
    runs = [measure() for _ in range(times)]
    middle = statistics.median_low([r.seconds for r in runs])
    return Measured(middle, max(r.peak_rss for r in runs), max(r.bytes_read for r in runs))


def machine() -> str:
    """Processor, cores, memory."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = psutil.virtual_memory().total / 2**30
    python = platform.python_version()
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {memory:.0f} GiB, Python {python}"


def commit() -> str:
    """The commit measured, with a mark if files differ from it."""
    words = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return words.stdout.strip() or "unknown (no git history here)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="bf16:mp8")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--experts", type=int, default=48)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="a checkout of flagos-ai/DeepSeek-V4-FlagOS (needs an mp target)")
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure; default: the temporary folder")
    parser.add_argument("--scale", type=int, nargs="+", metavar="N", help="measure these numbers of workers instead")
    parser.add_argument(
        "--targets", nargs="+", default=["bf16:mp8", "bf16:hf"], help="with --scale: what to convert to"
    )
    parser.add_argument(
        "--verify", action="store_true", help="with --scale: verify --source too, with the most workers"
    )
    parser.add_argument("--beside", type=Path, help="with --scale: a folder with another build's flagrelease/")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="flagrelease-bench-", dir=options.work))
    try:
        if options.scale:
            from convert_scaling import scale

            scale(options, work)
        else:
            measure(options, work)
    finally:
        shutil.rmtree(work)


def measure(options: argparse.Namespace, work: Path) -> None:
    """All rows of the table."""
    source = work / "source"
    write_checkpoint(source, flash_config(options.layers, options.experts, options.vocabulary))
    target = parse_target(options.target)
    plan = make_plan(read_source(source), [target], ConvertSpec())
    sizes = [file.size for file in plan.files]
    command = [sys.executable, "-m", "flagrelease", "convert", str(source), "--target", options.target,
               "--workers", str(options.workers), "--out", str(work / "out")]  # fmt: skip

    def convert() -> Measured:
        shutil.rmtree(work / "out", ignore_errors=True)
        return run(command, source)

    convert()  # so that Python has compiled every module
    rows: dict[str, Measured] = {}

    def raw(name: str, writer: Callable[[Path], Measured]) -> None:
        def once() -> Measured:
            folder = work / "raw"
            folder.mkdir()
            result = writer(folder)
            shutil.rmtree(folder)
            return result

        rows[name] = repeated(options.repeat, once)

    raw("raw write", lambda folder: raw_write(sizes, folder))
    raw("raw write + SHA-256", lambda folder: raw_write_hashed(sizes, folder, options.workers))
    rows["**convert**"] = repeated(options.repeat, convert)
    shutil.rmtree(work / "out", ignore_errors=True)
    if options.peer:
        assert target.mp is not None
        first, second = peer(options.peer, source, work, options.experts, target.mp)
        rows["convert_weight.py (peer)"] = first
        rows["convert.py (peer)"] = second
        both = Measured(
            first.seconds + second.seconds, max(first.peak_rss, second.peak_rss), first.bytes_read + second.bytes_read
        )
        rows["both scripts (peer)"] = both
    report(options, plan.source.index.total_size, plan.bytes_to_write, rows)


def report(options: argparse.Namespace, read: int, written: int, rows: dict[str, Measured]) -> None:
    """Markdown."""
    floor = rows["raw write + SHA-256"].seconds
    load = os.getloadavg()[0]
    print(f"- command: `python benchmarks/convert.py {' '.join(sys.argv[1:])}`")
    print(f"- machine: {machine()}; date {datetime.date.today()}; commit {commit()}; load {load:.1f} at the end")
    sizes = f"source {read / 1e9:.2f} GB, release {written / 1e9:.2f} GB"
    print(f"- {options.target}, {options.workers} workers; {sizes}; median of {options.repeat}")
    print(f"- SHA-256 {hash_rate():.2f} GB/s a core\n")
    print("| what | s | GB/s written | of the hashed raw write | peak RSS, all processes | read / source |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        memory = f"{row.peak_rss / 2**30:.2f} GiB" if row.peak_rss else ""
        ratio = f"{row.bytes_read / read:.2f}" if row.bytes_read else ""
        of_floor = f"{row.seconds / floor:.2f}"
        print(f"| {name} | {row.seconds:.1f} | {written / row.seconds / 1e9:.2f} | {of_floor} | {memory} | {ratio} |")


if __name__ == "__main__":
    main()
