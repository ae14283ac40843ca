"""Two GPUs of one host: do they exchange what NCCL would sum, the same tokens, and how fast? All in one run.

    timeout 170 torchrun --nproc-per-node 2 benchmarks/two_gpus.py             # values, tokens, times of sums: a minute
    timeout 170 torchrun --nproc-per-node 2 benchmarks/two_gpus.py --whole     # V4-Flash with all experts as well
    python benchmarks/two_gpus.py --whole --experts 192                        # one GPU, to compare with

No two GPUs have run exchanges yet (docs/engine-internals.md). Nothing is timed before the values agree. A kernel that
waits for ever is what a failure can look like, hence `timeout`. NVLink multicast stays off: NCCL_NVLS_ENABLE=0 and
TORCH_SYMM_MEM_DISABLE_MULTICAST=1 are for NCCL and torch; the exchange does not use it. Prints lines as it goes; make
benchmarks/engine-two-gpus_<machine>_<date>.md of them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.engine import EngineRow, Rates, measure_decode, measure_prefill
from flagrelease.bench.roof import copy_bandwidth, matrix_rate
from flagrelease.bench.synthetic import random_model
from flagrelease.device import Device, open_device
from flagrelease.engine import parallel
from flagrelease.engine.control import gather_bytes, open_control
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.kernels.exchange import Exchange, sum_over_ranks
from flagrelease.engine.kernels.norms.hc_post_mixes import hc_post_mixes, hc_post_mixes_over_ranks
from flagrelease.engine.kernels.quantisation.round_parts import round_parts
from flagrelease.engine.parallel import Groups, alone, join_groups, start_job
from flagrelease.engine.v4.model import Model
from flagrelease.ranks.job import local_rank, ranks

H = 4096  # Flash
SIZES = ((1, 4096), (3, 4096), (64, 4096), (17, 7000), (2, 132), (128, 4096), (1, 8), (5, 1001))  # rows, columns
EXCHANGES, AGAIN = 300, 5
ROWS, STEPS = 3, 24  # of the decoding whose tokens are compared
NEVER = 10**9  # tokens
_begun = time.monotonic()


def say(groups: Groups, *words: object) -> None:
    """One line of the leading rank, with the seconds so far."""
    if groups.is_leader:
        print(f"[{time.monotonic() - _begun:5.1f} s]", *words, flush=True)


def same_everywhere(groups: Groups, x: Tensor) -> bool:
    """Whether all ranks have the same bits."""
    if groups.control is None:
        return True
    own = hashlib.blake2b(x.contiguous().view(torch.uint8).cpu().numpy().tobytes()).digest()
    return len(set(gather_bytes(groups.control, own))) == 1


def microseconds(groups: Groups, device: Device, work: Callable[[], object], inner: int = 50) -> float:
    """Of one of `inner` works of a recording; the median of 7 replays that all ranks begin together."""

    def several() -> None:
        for _ in range(inner):
            work()

    replay, times = device.capture(several), []
    for _ in range(7):
        device.synchronize()
        if groups.control is not None:
            gather_bytes(groups.control, b".")
        begun = time.perf_counter()
        replay()
        device.synchronize()
        times.append((time.perf_counter() - begun) * 1e6 / inner)
    return median(times)


def check_exchange(groups: Groups, exchange: Exchange, place: torch.device) -> bool:
    """Sums of many sizes against torch's, in the order of ranks, bit by bit."""
    wrong, apart = 0, 0
    for n in range(EXCHANGES):
        every = []
        for rank in range(groups.mp):
            generator = torch.Generator(place).manual_seed(1000 * n + rank)
            shape = 2 + (n + rank) % 7, *SIZES[n % len(SIZES)]
            every.append(torch.randn(shape, generator=generator, device=place) * 1000.0**rank)
        got = sum_over_ranks(every[groups.rank], exchange, torch.float32)
        wrong += not torch.equal(got, in_order([in_order(list(each)) for each in every]))
        apart += n < 3 * len(SIZES) and not same_everywhere(groups, got)
    say(groups, f"{EXCHANGES} exchanges: {wrong} are not the sum in the order of ranks, {apart} differ between ranks")
    return not wrong and not apart


def in_order(parts: list[Tensor]) -> Tensor:
    """The sum of parts, one after the other."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def time_sums(groups: Groups, exchange: Exchange, device: Device, rows: int) -> None:
    """Sums of so many rows alone, and with the kernels before and after them, in recordings."""
    place = torch.device(device.torch_device)
    shapes = (1, rows, H), (7, rows, H), (rows, 4, H), (rows, 4), (rows, 4, 4), (24, 4 * H)
    x, parts, streams, post, comb, fn = (torch.randn(shape, device=place) for shape in shapes)
    parts, streams, y = parts.bfloat16(), streams.bfloat16(), x[0].clone()

    def chained() -> None:
        total = round_parts(parts, torch.float32, False)[0]
        dist.all_reduce(total)
        hc_post_mixes(total[None], streams, post, comb, fn)

    works: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(y),
        "exchange": lambda: sum_over_ranks(x, exchange, torch.float32),
        "parts, all_reduce, mHC": chained,
        "mHC that exchanges": lambda: hc_post_mixes_over_ranks(parts, streams, post, comb, fn, exchange),
    }
    times = [f"{name} {microseconds(groups, device, work):.1f} us" for name, work in works.items()]
    say(groups, f"{rows} rows of {H}:", "; ".join(times))


def decoded(model: Model, given: Tensor | None) -> Tensor:
    """Logits [STEPS, ROWS, V] of captured steps, whose tokens are the best ones before or those `given`."""
    cache = model.new_cache(ROWS, 256)
    model.extend(cache, [list(range(7 + n, 47 + 9 * n)) for n in range(ROWS)])
    decoder, tokens, every = Decoder(model, cache), [5] * ROWS, list[Tensor]()
    for step in range(STEPS):
        every.append(decoder.decode(tokens).clone())
        tokens = (every[-1].argmax(-1) if given is None else given[step]).tolist()
    decoder.forget()
    return torch.stack(every)


def check_tokens(groups: Groups, device: Device) -> None:
    """Of 8 layers of Flash's dimensions: exchanges against the backend's sums, and large steps shared out or not."""
    config = dimensions("flash", 8, 32)
    for numerics in ("bf16", "native"):
        model = random_model(config, numerics, "auto", device, 2048, groups=groups)
        one = decoded(model, None)
        again = all(torch.equal(one, decoded(model, None)) for _ in range(AGAIN))
        say(groups, f"{numerics}: the same on all ranks: {same_everywhere(groups, one)}; again the same: {again}")
        compare(groups, f"{numerics}, exchanges and all_reduce", decoded(by_backend(model), one.argmax(-1)), one)
        prompt = [17 * n % 5000 for n in range(2048)]
        shared = model.prefill(model.new_cache(1, 2048), 0, prompt)
        least, parallel.SPREAD = parallel.SPREAD, NEVER
        compare(
            groups,
            f"{numerics}, a prompt shared out and not",
            shared,
            model.prefill(model.new_cache(1, 2048), 0, prompt),
        )
        parallel.SPREAD = least
        say(groups, f"{numerics}: a prompt shared out is the same on all ranks: {same_everywhere(groups, shared)}")
        del model
        torch.cuda.empty_cache()


def compare(groups: Groups, what: str, one: Tensor, other: Tensor) -> None:
    """How many best tokens agree, and how far the logits are apart."""
    same = (one.argmax(-1) == other.argmax(-1)).float().mean()
    distance = ((one - other).norm(dim=-1) / other.norm(dim=-1)).median()
    say(groups, f"{what}: {100 * float(same):.1f} % the same tokens, relative distance {100 * float(distance):.3f} %")


def by_backend(model: Model) -> Model:
    """The model without an exchange."""
    return replace(model, groups=replace(model.groups, exchange=None))


def time_model(groups: Groups, device: Device, experts: int) -> None:
    """As `flagrelease bench engine` does, with exchanges and shared steps, then without."""
    rates = Rates(copy_bandwidth(device, 2 << 30), matrix_rate(device, 8192))
    model = random_model(dimensions("flash", None, experts), "native", "auto", device, 8192, groups=groups)
    say(groups, f"made; copy {rates.copy_bandwidth / 1e12:.2f} TB/s, product {rates.matrix_rate / 1e12:.0f} Tops/s")
    kinds = {"": model} if groups.mp == 1 else {"exchanges, shared out": model, "all_reduce": by_backend(model)}
    least = parallel.SPREAD
    for name, each in kinds.items():
        parallel.SPREAD = least if each is model else NEVER
        for batch in (1, 16, 64):
            show(groups, name, measure_decode(each, 20, batch, 4096, rates))
        for prompt in (512, 8192):
            show(groups, name, measure_prefill(each, prompt, rates))
    parallel.SPREAD = least


def show(groups: Groups, name: str, row: EngineRow) -> None:
    """One measurement as a line."""
    took = f"{row.seconds * 1e3:.2f} ms, {row.rate:.1f} tok/s, {100 * row.share:.0f} % of the roof"
    say(groups, f"{name} {row.phase} {row.size}: {took}; collectives alone {row.collectives * 1e3:.2f} ms")


@torch.inference_mode()
def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="time all layers, too")
    parser.add_argument("--experts", type=int, default=256)
    options = parser.parse_args()
    device = open_device("cuda", local_rank())
    device.set_current()
    start_job(device)
    control = open_control()
    groups = alone() if ranks() == 1 else join_groups(dimensions("flash"), "split", control, device)
    exchange = groups.exchange
    say(
        groups, f"{groups.mp} x {device.name}, torch {torch.__version__},", "an exchange" if exchange else "no exchange"
    )
    if exchange is not None and not check_exchange(groups, exchange, torch.device(device.torch_device)):
        groups = replace(groups, exchange=None)  # the same on every rank: all compare the same numbers
    if groups.mp > 1:
        check_tokens(groups, device)
    if groups.exchange is not None:
        for rows in (1, 4, 16, 64, 128):
            time_sums(groups, groups.exchange, device, rows)
    if options.whole:
        time_model(groups, device, options.experts)
    sys.stdout.flush()
    os._exit(0)  # recordings hold collectives, for whose end the communicator would wait


if __name__ == "__main__":
    main()
