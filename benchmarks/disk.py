"""What `--disk` plans for full-size models: passes, peak, reading. Headers are of real size, data are holes.

    python benchmarks/disk.py

Nothing is measured: these are figures of plans, the same on every machine. Prints Markdown, for benchmarks/disk_*.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from flagrelease.convert.planning.passes import plan_passes
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.model.v4.synthetic import write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import read_source

ROOT = Path(__file__).resolve().parents[1]
GB = 10**9
BUDGETS = {"flash": (50, 100, 200, 500), "pro": (100, 500, 1000, 2000)}
THREE = ("bf16:hf", "bf16:mp8", "fp8:mp8")
CASES = ((("bf16:hf",), None), (("bf16:mp8",), None), (("bf16:mp8",), 20), (THREE, None), (THREE, 20))


def gigabytes(count: int) -> str:
    """To a tenth."""
    return f"{count / GB:,.1f}"


def main() -> None:
    """Plan and print."""
    work = Path(tempfile.mkdtemp(prefix="flagrelease-disk-"))
    print("| model | targets | all files | least | budget | peak | passes | source read |")
    print("|---|---|---|---|---|---|---|---|")
    try:
        for model, budgets in BUDGETS.items():
            config = json.loads((ROOT / "tests" / "golden" / "configs" / f"{model}.json").read_text())
            write_checkpoint(work / model, config, holes=True)
            source = read_source(work / model)
            for targets, part in CASES:
                options = ConvertSpec(max_file_bytes=5 * GB, rank_part_bytes=part and part * GB)
                plan = make_plan(source, [parse_target(target) for target in targets], options)
                least = plan_passes(plan, 10**16).least
                name = ", ".join(targets) + (f", ranks in parts of {part}" if part else "")
                for budget in budgets:
                    head = f"| {model} | {name} | {gigabytes(plan.bytes_to_write)} | {gigabytes(least)} | {budget} |"
                    if budget * GB < least:
                        print(f"{head} refused | | |", flush=True)
                        continue
                    disk = plan_passes(plan, budget * GB)
                    read = disk.bytes_to_read / source.index.total_size
                    print(f"{head} {gigabytes(disk.peak)} | {len(disk.passes)} | {read:.2f} x |", flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
