"""The gap between tokens of running answers, alone and while a long prompt is read beside them.

    python benchmarks/gaps.py --dimensions flash --experts 192 --rows 1,16,64 --prompt 32768

A model of random weights, and the orders that a scheduler gives: each step reads a piece of the prompt, as long as
`allowance` has it for so many answers, and appends a token to each of them; it ends when the tokens are on the host.
For each number of rows: the gap's p50 and p99 in ms, alone and beside the prompt, the ratio of the p99, the piece's
tokens, and how many of the prompt are read in a second. `--pieces` measures other lengths of pieces too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch

from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.synthetic import random_model
from flagrelease.device import open_device
from flagrelease.engine.batch.orders import Next, Prefill
from flagrelease.engine.batch.reading import allowance
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.loaded import DEFAULT_CHUNK
from flagrelease.engine.v4.model import Model

BEHIND = 300  # tokens of each answer's prompt


def tokens(model: Model, count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(model.config.vocab_size, (count,), generator=generator).tolist())


def steps(runner: Runner, rows: int, prompt: tuple[int, ...], piece: int) -> Iterator[float]:
    """Seconds of each step, without end; with a `piece` of 0 nothing is read, and else until the prompt is."""
    answers, begin = Next(tuple(range(rows))), 0
    while begin < len(prompt):
        start = time.perf_counter()
        if piece:
            part = prompt[begin : begin + piece]
            runner.run(Prefill(rows, part, begin == 0, None, every=False))
            begin += len(part)
        chosen = runner.run(answers)[:rows, 0].argmax(-1)
        runner.keep(slice(0, rows), chosen)
        chosen.tolist()
        yield time.perf_counter() - start


def measured(runner: Runner, rows: int, prompt: tuple[int, ...], piece: int, count: int) -> tuple[float, float]:
    """p50 and p99 in ms of `count` steps, after some that capture what they need."""
    times = steps(runner, rows, prompt, piece)
    for _ in range(3):
        next(times)
    taken = sorted(1e3 * seconds for _, seconds in zip(range(count), times, strict=False))
    return taken[len(taken) // 2], taken[min(len(taken) - 1, len(taken) * 99 // 100)]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", default="flash")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--operators", default="auto")
    parser.add_argument("--numerics", default="native")
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--pieces", default="")
    parser.add_argument("--prompt", type=int, default=32768)
    parser.add_argument("--chunk", type=int, default=DEFAULT_CHUNK)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    device = open_device(asked.device)
    device.set_current()
    config = dimensions(asked.dimensions, asked.layers, asked.experts)
    model = random_model(config, asked.numerics, asked.operators, device, asked.chunk)
    prompt = tokens(model, asked.prompt, 0)
    print(f"{device.name}: rows; gap alone p50, p99 ms; piece; gap beside p50, p99 ms; ratio of p99; prompt tok/s")
    for rows in map(int, asked.rows.split(",")):
        pieces = dict.fromkeys([allowance(asked.chunk, 1, rows), *map(int, filter(None, asked.pieces.split(",")))])
        runner = Runner(model, rows + 1, max(asked.prompt, BEHIND + (asked.steps + 3) * (1 + len(pieces))))
        for row in range(rows):
            behind = tokens(model, BEHIND, 1 + row)
            for begin in range(0, BEHIND, runner.chunk):
                part = behind[begin : begin + runner.chunk]
                last = runner.run(Prefill(row, part, begin == 0, None, every=False))
            runner.keep(slice(row, row + 1), last.argmax(-1))
        alone = measured(runner, rows, prompt, 0, asked.steps)
        for piece in pieces:
            beside = measured(runner, rows, prompt, piece, asked.steps)
            print(
                f"{rows:4d}; {alone[0]:.1f}, {alone[1]:.1f}; {piece:4d}; "
                f"{beside[0]:.1f}, {beside[1]:.1f}; {beside[1] / alone[1]:.2f}; {1e3 * piece / beside[0]:.0f}",
                flush=True,
            )
        runner.stop()


if __name__ == "__main__":
    main()
