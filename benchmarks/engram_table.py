"""What does a table cost that stays with the host: when a model starts, and in every step?

    python benchmarks/engram_table.py                                 # 16 GiB, as an Engram table is stored
    python benchmarks/engram_table.py --gib 94 --file /disk/table     # one of V4.1-Flash's, kept for the next run
    python benchmarks/engram_table.py --gib 1 --device cpu            # what a small machine can do

The start: the file's pages are dropped from the cache (not with --warm), then mapped, read and pinned as a release's
are; beside it what threads read of the file. A step: 24 rows a token, by the kernel through the pointer and by the
host, each call with rows that no call had before (on a CPU, which reads nothing ahead, from the disk therefore). Calls
of the kernel are recorded, 50 in a graph, and divided by 50; those of the host wait for the device, as they must.
Prints Markdown; copy it to benchmarks/engram-table_<machine>_<date>.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from convert import commit, drop_from_cache, machine
from loading import BLOCK, read_rate
from torch import Tensor

from flagrelease.device import Device, open_device
from flagrelease.engine.host_rows import HostRows, host_rows
from flagrelease.engine.intake import Intake
from flagrelease.engine.kernels.provider import load_provider
from flagrelease.engine.kernels.reference import v41
from flagrelease.shard.header import TensorMeta

WIDTH, GROUPS, PER_TOKEN = 256, 8, 24  # columns and scales of a row, rows of a token
CALLS = 50
FINITE = 0x77  # no code that is NaN, and scales from 1 to 2^-127


def write(file: Path, rows: int) -> None:
    """Codes [rows, 256], then scales [rows, 8]: random bytes, a block of them again and again."""
    block = (np.random.default_rng(0).integers(0, 256, BLOCK, dtype=np.uint8) & FINITE).tobytes()
    size = rows * (WIDTH + GROUPS)
    with file.open("wb", buffering=0) as out:
        os.posix_fallocate(out.fileno(), 0, size)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda at: os.pwrite(out.fileno(), block[: size - at], at), range(0, size, BLOCK)))


def start(file: Path, rows: int, device: Device) -> tuple[HostRows, HostRows]:
    """Hold both tensors as a release's loader does, and say how long that took."""
    codes = TensorMeta("embed.weight", "F8_E4M3", (rows, WIDTH), file, 0, rows * WIDTH)
    scales = TensorMeta("embed.scale", "F8_E8M0", (rows, GROUPS), file, codes.end, codes.end + rows * GROUPS)
    with Intake(device) as intake:
        begun = time.perf_counter()
        held = host_rows(codes, 0, codes.nbytes, intake), host_rows(scales, 0, scales.nbytes, intake)
        seconds = time.perf_counter() - begun
    for one in held:
        print(f"- {one.how}")
    rate = (codes.nbytes + scales.nbytes) / seconds
    print(f"- held after {seconds:.2f} s: {rate / 1e9:.2f} GB/s\n", flush=True)
    return held


def median_call(work: Callable[[], object], device: Device, fresh: Callable[[], None], calls: int) -> float:
    """Microseconds of one of the `calls` that `work` makes; before each round the rows are new."""
    times = []
    for _ in range(12):
        fresh()
        device.synchronize()
        begun = time.perf_counter()
        work()
        device.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:]) / calls * 1e6


def steps(held: tuple[HostRows, HostRows], device: Device) -> None:
    """Print a row for each number of tokens."""
    codes = held[0].data.view(torch.float8_e4m3fn).view(-1, WIDTH)
    scales = held[1].data.view(torch.float8_e8m0fnu).view(-1, GROUPS)
    place = torch.device(device.torch_device)
    ops = load_provider("auto", place)
    print("| tokens | rows | through the pointer, us | by the host, us |\n|---|---|---|---|")
    for tokens in (1, 4, 16, 64, 1024):
        rows = torch.empty(CALLS, tokens, PER_TOKEN, dtype=torch.int64, device=place)

        def fresh(rows: Tensor = rows) -> None:
            rows.copy_(torch.randint(0, len(codes), rows.shape))

        fresh()
        shown = "-"
        if all(one.pinned for one in held):
            replay = device.capture(lambda rows=rows: [ops.engram_rows(codes, scales, one, 0) for one in rows])  # type: ignore[misc,arg-type]
            shown = f"{median_call(replay, device, fresh, CALLS):.1f}"
        by_host = median_call(lambda rows=rows: v41.engram_rows(codes, scales, rows[0], 0), device, fresh, 1)  # type: ignore[misc]
        print(f"| {tokens} | {tokens * PER_TOKEN} | {shown} | {by_host:.1f} |", flush=True)


def main() -> None:
    """Write the table, hold it, read from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=16)
    parser.add_argument("--file", type=Path, help="the table; written first if there is none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--warm", action="store_true", help="leave the file in the cache")
    options = parser.parse_args()
    rows, device = int(options.gib * 2**30) // (WIDTH + GROUPS), open_device(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        file: Path = options.file or Path(temporary) / "table"
        if not file.exists():
            write(file, rows)
        rows = file.stat().st_size // (WIDTH + GROUPS)
        print(f"- {machine()}; {device.name}; torch {torch.__version__}; {datetime.date.today()}; {commit()}")
        drop_from_cache(file.parent)
        print(f"- threads read the file at {read_rate([file], 16) / 1e9:.2f} GB/s{', warm afterwards' * options.warm}")
        if not options.warm:
            drop_from_cache(file.parent)
        steps(start(file, rows, device), device)


if __name__ == "__main__":
    main()
