"""How fast does a release load, against the disk, the memory and the way to the device? All in one run.

    python benchmarks/loading.py                            # V4-Flash dimensions, 8 layers, 96 experts: 14 GB
    python benchmarks/loading.py --layers 2 --experts 8     # what a small machine can do
    python benchmarks/loading.py --folder F                 # the release there; written first if there is none

Loading must read the files and copy what it read to the device. So its floors are what threads read of the same files
at best, cold (dropped from the page cache before) and warm, and a copy from pinned memory. Until the first tensor has
been read the headers are, and are checked. A first load, which also compiles, does not count. Prints
Markdown; copy it to benchmarks/loading_<machine>_<date>.md.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convert import drop_from_cache, machine

from flagrelease import engine
from flagrelease.bench.dimensions import FLASH
from flagrelease.device import Device, open_device
from flagrelease.model.v4.synthetic import write_checkpoint
from flagrelease.shard.index import open_checkpoint

BLOCK = 16 << 20
FINITE = 0x77  # a byte of which every dtype makes a finite number, and no FP8 code that is NaN
WRITERS = 16


@dataclass(frozen=True)
class Loaded:
    """Seconds of one load, and those until its first tensor."""

    seconds: float
    first: float


def write_release(folder: Path, layers: int, experts: int) -> None:
    """A release whose experts' codes are random bytes. All else is one byte, which costs no time to make."""
    ratios = FLASH["compress_ratios"]
    cut = {"num_hidden_layers": layers, "compress_ratios": ratios[:layers], "n_routed_experts": experts}
    write_checkpoint(folder, FLASH | cut | {"num_nextn_predict_layers": 0}, holes=True)
    random = np.random.default_rng(0).integers(0, 256, BLOCK, dtype=np.uint8).tobytes()
    finite = bytes([FINITE]) * BLOCK

    def fill(tensor: Any) -> None:
        coded = ".experts." in tensor.name and tensor.name.endswith(".weight")
        with tensor.file.open("r+b", buffering=0) as file:
            for at in range(tensor.begin, tensor.end, BLOCK):
                os.pwrite(file.fileno(), (random if coded else finite)[: tensor.end - at], at)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(fill, open_checkpoint(folder).tensors.values()))


def read_rate(files: list[Path], threads: int) -> float:
    """Bytes a second of reading all files into a buffer of each thread."""
    pieces = [(path, at) for path in files for at in range(0, path.stat().st_size, BLOCK)]
    shares = [pieces[n::threads] for n in range(threads)]
    descriptors = {path: os.open(path, os.O_RDONLY) for path in files}

    def read(share: list[tuple[Path, int]]) -> int:
        buffer = bytearray(BLOCK)
        return sum(os.preadv(descriptors[path], [buffer], at) for path, at in share)

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, shares))
    seconds = time.perf_counter() - begun
    for descriptor in descriptors.values():
        os.close(descriptor)
    return total / seconds


def copy_rate(device: Device) -> float:
    """Bytes a second from pinned memory to the device."""
    host = torch.empty(1 << 30, dtype=torch.uint8).fill_(1).pin_memory()
    there = torch.empty_like(host, device=device.torch_device)
    times = []
    for _ in range(4):
        device.synchronize()
        begun = time.perf_counter()
        there.copy_(host, non_blocking=True)
        device.synchronize()
        times.append(time.perf_counter() - begun)
    return host.numel() / statistics.median(times[1:])


def load(folder: Path, device: Device) -> Loaded:
    """Load once, and forget the model."""
    first: list[float] = []
    note: Callable[[int, int], None] = lambda done, total: first.append(time.perf_counter()) if not first else None  # noqa: E731
    begun = time.perf_counter()
    model = engine.load(folder, device=device.torch_device.partition(":")[0], progress=note)
    device.synchronize()
    seconds = time.perf_counter() - begun
    del model
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device.torch_device).empty_cache()
    return Loaded(seconds, first[0] - begun)


def measure(folder: Path, device: Device, readers: list[int], repeat: int) -> None:
    """Print the floors and the loads."""
    files = sorted(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    print(f"- {machine()}; {device.name}; torch {torch.__version__}; {datetime.date.today()}")
    print(f"- {size / 1e9:.1f} GB in {len(files)} files: {len(open_checkpoint(folder).tensors)} tensors\n")
    cold, warm = {}, {}
    for threads in readers:
        drop_from_cache(folder)
        cold[threads] = read_rate(files, threads)
        warm[threads] = read_rate(files, threads)
        print(
            f"reading by {threads} threads: cold {cold[threads] / 1e9:.2f}, warm {warm[threads] / 1e9:.2f} GB/s",
            flush=True,
        )
    copied = copy_rate(device) if device.type != "cpu" else float("inf")
    print(f"copy to the device: {copied / 1e9:.1f} GB/s\n")
    print(f"first load: {load(folder, device).seconds:.2f} s\n", flush=True)
    print("| files | load | until the first tensor | rate | floor | share |\n|---|---|---|---|---|---|")
    for name, rates in (("cold", cold), ("warm", warm)):
        floor = min(max(rates.values()), copied)
        for _ in range(repeat):
            if name == "cold":
                drop_from_cache(folder)
            loaded = load(folder, device)
            rate = size / loaded.seconds
            shown = [
                f"{loaded.seconds:.2f} s",
                f"{loaded.first:.2f} s",
                *(f"{x / 1e9:.2f} GB/s" for x in (rate, floor)),
            ]
            print("| " + " | ".join([name, *shown, f"{100 * rate / floor:.0f} %"]) + " |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=96)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--readers", default="1,4,16", help="numbers of threads that read for the floor")
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary) / "release"
        if not (folder / "config.json").exists():
            begun = time.perf_counter()
            write_release(folder, options.layers, options.experts)
            drop_from_cache(folder)
            print(f"- written and synchronised in {time.perf_counter() - begun:.1f} s")
        readers = [int(threads) for threads in options.readers.split(",")]
        measure(folder, open_device(options.device), readers, options.repeat)


if __name__ == "__main__":
    main()
