"""How fast the scheduler generates, beside the captured step alone; what a step with drafts costs.

    python benchmarks/generation.py --dimensions flash --experts 84 --batch 1,16,64

Weights are random, so that no draft is right: with a share `a` of right drafts, a sequence gets 1 + a tokens in the
time of a pair step and a draft. Columns: tokens a second as sampled at temperature 1, everything included, with short
contexts; milliseconds of a captured step of one token a row, of two, and of the MTP stage's, after `--past` tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.roof import seconds
from flagrelease.bench.synthetic import random_model
from flagrelease.device import open_device
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.decode.drafter import Drafter
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer, TokenStream
from flagrelease.engine.v4.model import Model


class NoTokenizer(Tokenizer):
    """Tokens of random weights say nothing."""

    def __init__(self) -> None:
        pass

    def stream(self) -> TokenStream:
        return TokenStream(lambda token: b"")


def generate(model: Model, rows: int, context: int, tokens: int, *, speculate: bool) -> float:
    """Tokens a second of `rows` sequences that run together, from when all prompts are read."""
    scheduler = Scheduler(Runner(model, rows, context, speculate=speculate), NoTokenizer())
    for seed in range(rows):
        prompt = torch.randint(model.config.vocab_size, (16,)).tolist()
        scheduler.submit(prompt, Sampling(temperature=1, seed=seed, max_tokens=tokens))
    while scheduler.waiting or scheduler.totals.generated < 8 * rows:  # all read, and what is captured is
        scheduler.step()
    before, begun = scheduler.totals.generated, time.perf_counter()
    while scheduler.active == rows:
        scheduler.step()
    return (scheduler.totals.generated - before) / (time.perf_counter() - begun)


def steps(model: Model, rows: int, context: int, past: int) -> tuple[float, float, float]:
    cache, drafts = model.new_cache(rows, context), model.new_draft_cache(rows, context)
    decoder = Decoder(model, cache, width=2)
    drafter = Drafter(model, drafts, decoder.features)
    # One token in all rows would go to the same few experts, and a step would read only those.
    tokens = torch.randint(model.config.vocab_size - 1, (rows,)).tolist()

    def again(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            cache.lengths[:] = drafts.lengths[:] = [past] * rows
            work()

        return run

    one, two, draft = (
        1e3 * seconds(model.device, again(work), repeats=3, inner=20)
        for work in (
            lambda: decoder.advance([[token] for token in tokens]),
            lambda: decoder.advance([[token, token + 1] for token in tokens]),
            lambda: drafter.draft([[token] for token in tokens]),
        )
    )
    return one, two, draft


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", default="flash")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--context", type=int, default=4352)
    parser.add_argument("--past", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=72)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = open_device(arguments.device)
    config = dimensions(arguments.dimensions, arguments.layers, arguments.experts)
    model = random_model(config, "native", "auto", device, 512, mtp=True)
    print(f"{device.name}, {config.num_hidden_layers} layers, {config.n_routed_experts} experts", flush=True)
    print("| batch | tok/s | with drafts, none right, tok/s | step, ms | pair, ms | draft, ms |", flush=True)
    for rows in map(int, arguments.batch.split(",")):
        speeds = [
            generate(model, rows, arguments.context, arguments.tokens, speculate=speculate)
            for speculate in (False, True)
        ]
        times = steps(model, rows, arguments.context, arguments.past)
        cells = [str(rows), *(f"{speed:.1f}" for speed in speeds), *(f"{each:.2f}" for each in times)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
