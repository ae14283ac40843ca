"""Processor seconds of a start: from exec to the first byte of a tensor that `convert` reads, of builds by turns.

Every run is a process of its own, which ends at the first read and prints what it has used by then, user and system
together. Builds take turns, so that a busy machine is as busy for each of them; the least and the median are shown.

    python benchmarks/start.py --repeat 25 --beside build-c156df0
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from convert import ROOT, commit, machine

TINY = ROOT / "examples" / "tiny" / "flagrelease-tiny-v4"
# The console script of the package, but for the one function that reads tensors.
CODE = """
import os, resource, sys
from flagrelease import cli
from flagrelease.shard.reader import TensorReader
def first(*_):
    used = resource.getrusage(resource.RUSAGE_SELF)
    os.write(1, f"\\nUSED {used.ru_utime + used.ru_stime}\\n".encode())
    os._exit(0)
TensorReader.read = first
cli.run()
"""


def seconds(build: Path, words: list[str]) -> float:
    """Of one start of the build in this folder."""
    environment = os.environ | {"PYTHONPATH": str(build), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words], cwd=build, env=environment, capture_output=True, text=True, check=False
    )
    used = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("USED ")]
    if not used:
        sys.exit(f"{build}: flagrelease {' '.join(words)} read no tensor:\n{done.stderr}")
    return float(used[0])


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--beside", type=Path, help="the root of another build")
    options = parser.parse_args()
    builds = {"this": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    work = Path(tempfile.mkdtemp(prefix="flagrelease-start-"))
    out = ["--out", str(work / "out")]
    starts = {
        "convert FOLDER --target": ["convert", str(TINY), "--target", "bf16:mp8", *out],
        "convert RECIPE": ["convert", str(ROOT / "recipes" / "tiny.yaml"), "--checkpoint", str(TINY), *out],
    }
    print(f"- command: `python benchmarks/start.py {' '.join(sys.argv[1:])}`")
    print(f"- machine: {machine()}; commit {commit()}; load {os.getloadavg()[0]:.1f} at the beginning\n")
    print("| start | build | least CPU s | median CPU s |")
    print("|---|---|---|---|")
    for what, words in starts.items():
        taken: dict[str, list[float]] = {name: [] for name in builds}
        for number in range(options.repeat + 1):
            for name, build in builds.items():
                shutil.rmtree(work / "out", ignore_errors=True)
                used = seconds(build, words)
                if number:  # the first start of a build compiles its modules
                    taken[name].append(used)
        for name, used_by in taken.items():
            print(f"| {what} | {name} | {min(used_by):.2f} | {statistics.median(used_by):.2f} |", flush=True)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
