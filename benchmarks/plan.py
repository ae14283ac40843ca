"""How long does `plan` of a full-size model take? The headers are real, the data are holes in sparse files.

    python benchmarks/plan.py                                  # this checkout
    python benchmarks/plan.py --before ../flagrelease-59ea74a  # beside another checkout, in turns

Each run is a whole process, as a user starts it: imports, headers, plan, summary. Processor seconds are those of the
process; on a busy machine they say more than the clock. Prints Markdown, for benchmarks/plan_<machine>_<date>.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flagrelease.model.v4.synthetic import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "Pro, all chips of its recipe": ("pro", ["recipes/deepseek-v4-pro.yaml"]),
    "Flash, all chips of its recipe": ("flash", ["recipes/deepseek-v4-flash.yaml"]),
    "Pro, one chip": ("pro", ["recipes/deepseek-v4-pro.yaml", "--chip", "metax"]),
}


def run(checkout: Path, words: list[str], checkpoint: Path) -> tuple[float, float]:
    """Seconds of one plan by the clock, and those of the processor."""
    command = [sys.executable, "-m", "flagrelease", "plan", *words, "--checkpoint", str(checkpoint), "--json"]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, used


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="flagrelease-plan-"))
    try:
        for name in ("flash", "pro"):
            config = json.loads((ROOT / "tests" / "golden" / "configs" / f"{name}.json").read_text())
            write_checkpoint(work / name, config, holes=True)
        checkouts = {"this checkout": ROOT} | ({} if options.before is None else {"before": options.before.resolve()})
        print(f"- {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}; {datetime.date.today()}")
        print(f"- median of {options.repeat}; load {os.getloadavg()[0]:.1f} at the beginning\n")
        print("| plan | checkout | s | processor s |")
        print("|---|---|---|---|")
        for case, (name, words) in CASES.items():
            runs: dict[str, list[tuple[float, float]]] = {checkout: [] for checkout in checkouts}
            for _ in range(options.repeat):
                for checkout, path in checkouts.items():
                    runs[checkout].append(run(path, words, work / name))
            for checkout, measured in runs.items():
                clock, used = (statistics.median(one[part] for one in measured) for part in (0, 1))
                print(f"| {case} | {checkout} | {clock:.1f} | {used:.1f} |", flush=True)
        print(f"\nload {os.getloadavg()[0]:.1f} at the end")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
