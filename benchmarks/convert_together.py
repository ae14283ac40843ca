"""What a second release costs when both come from one pass: bf16:mp8 alone, int8:hf alone, and the two together.

    python benchmarks/convert_together.py                   # real V4-Flash dimensions, 2 layers, 32 experts
    python benchmarks/convert_together.py --first bf16:mp8 --second int8-experts:hf --repeat 5

The experts are Gaussian numbers quantised by DeepSeek's rule, because the cost of INT8 depends on them: a row that a
power of two does not hold exactly is quantised twice. Runs alternate, so that a change of the machine's load meets all.
CPU seconds are those of the whole process, start included. Prints Markdown for benchmarks/convert-together_*.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from convert import commit, drop_from_cache, flash_config, hash_rate, machine

from flagrelease.convert.codecs.fp4 import FP4_DECODER
from flagrelease.convert.codecs.quantise import encode
from flagrelease.model.v4.synthetic import write_checkpoint
from flagrelease.shard.index import open_checkpoint

PROGRAM = """
import sys
from pathlib import Path
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import read_source
source, out, workers, *targets = sys.argv[1:]
plan = make_plan(read_source(Path(source)), map(parse_target, targets), ConvertSpec(lossy_repack="allow"))
convert(plan, Path(out), workers=int(workers), lookup=cpu_lookup, progress=lambda done: None)
"""


def make_gaussian(folder: Path) -> None:
    """Overwrite the experts' codes and scales by those of one Gaussian matrix, cut to each shape."""
    codes, scales = encode(FP4_DECODER, np.random.default_rng(0).standard_normal((2048, 4096)), (1, 32))
    for name, meta in open_checkpoint(folder).tensors.items():
        if ".experts." in name:
            data = (scales if name.endswith(".scale") else codes).reshape(-1)
            assert data.size == meta.nbytes, name
            with Path(meta.file).open("r+b") as file:
                file.seek(meta.begin)
                file.write(data.tobytes())


def measure(source: Path, out: Path, workers: int, targets: list[str]) -> tuple[float, float]:
    """(seconds by the clock, CPU seconds) of one conversion from a cold source."""
    shutil.rmtree(out, ignore_errors=True)
    drop_from_cache(source)
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", PROGRAM, source, out, str(workers), *targets], check=True)
    clock, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", default="bf16:mp8")
    parser.add_argument("--second", default="int8:hf")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure; default: the temporary folder")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="flagrelease-bench-", dir=options.work))
    try:
        source = work / "source"
        write_checkpoint(source, flash_config(options.layers, options.experts, 16384))
        make_gaussian(source)
        sets = ([options.first], [options.second], [options.first, options.second])
        runs: list[list[tuple[float, float]]] = [[], [], []]
        for _ in range(options.repeat):
            for targets, found in zip(sets, runs, strict=True):
                found.append(measure(source, work / "out", options.workers, targets))
        print(f"- command: `python benchmarks/convert_together.py {' '.join(sys.argv[1:])}`")
        print(f"- machine: {machine()}; date {datetime.date.today()}; commit {commit()}; load {os.getloadavg()[0]:.1f}")
        print(f"- {options.workers} workers; median of {options.repeat}; SHA-256 {hash_rate():.2f} GB/s a core\n")
        print("| targets | s | CPU s | of the first alone, clock | CPU |")
        print("|---|---|---|---|---|")
        clock, cpu = (statistics.median(run[n] for run in runs[0]) for n in (0, 1))
        for targets, found in zip(sets, runs, strict=True):
            own = [statistics.median(run[n] for run in found) for n in (0, 1)]
            names = " + ".join(targets)
            print(f"| {names} | {own[0]:.1f} | {own[1]:.1f} | {own[0] / clock:.2f} | {own[1] / cpu:.2f} |")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
