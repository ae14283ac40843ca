"""What the server reaches of the captured step's rate: the step, the scheduler, and `bench serve` against `serve`.

    python benchmarks/serving.py --dimensions flash --experts 100 --tokenizer FOLDER --batch 1,64 --out FILE.json

One process makes a model of random weights and measures it in turn: the captured step of so many rows; the scheduler,
from when all prompts are read until the first answer ends; and `serve` with the tokenizer.json and config.json of
FOLDER, asked by `flagrelease bench serve` in a process of its own. Chats have `--answer` tokens at temperature 1.
With `--scenario long` the prompts have 8,192 tokens, as in the tables that others publish:

    python benchmarks/serving.py --dimensions flash --experts 192 --tokenizer FOLDER --batch 16,64 --context 10240 \
        --scenario long --concurrency 1,16,64 --answer 1024 --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch

from flagrelease.bench.dimensions import dimensions
from flagrelease.bench.roof import seconds
from flagrelease.bench.synthetic import random_model
from flagrelease.device import open_device
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.decode.decoder import Decoder
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve import serving
from flagrelease.engine.serve.bind import bind
from flagrelease.engine.session import Session
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

PORT = 8123
PAST = 300  # tokens behind a captured step, about as many as the scheduler's and the server's sequences have


def step_rate(model: Model, rows: int, context: int) -> float:
    """Tokens a second of captured steps that are queued one behind the other.

    Every row has another token: rows of one token would go to the same few experts, and a step would read only those.
    """
    decoder = Decoder(model, model.new_cache(rows, context))
    tokens = torch.randint(model.config.vocab_size, (rows,), generator=torch.Generator().manual_seed(0))
    decoder.tokens.copy_(tokens)
    decoder.positions.fill_(PAST)
    rate = rows / seconds(model.device, lambda: decoder.step(rows, PAST), repeats=3, inner=20)
    decoder.forget()
    return rate


def scheduler_rate(model: Model, rows: int, context: int, tokenizer: Tokenizer, tokens: int) -> dict[str, float]:
    scheduler = Scheduler(Runner(model, rows, context), tokenizer)
    for seed in range(rows):
        prompt = torch.randint(5, 60000, (16,), generator=torch.Generator().manual_seed(seed)) % model.config.vocab_size
        scheduler.submit(prompt.tolist(), Sampling(temperature=1, seed=seed, max_tokens=tokens, ignore_eos=True))
    while scheduler.waiting or scheduler.totals.generated < 8 * rows:  # all read, and what is captured is
        scheduler.step()
    before, begun, worked = scheduler.totals.generated, time.perf_counter(), time.thread_time()
    while scheduler.active == rows:
        scheduler.step()
    made, took = scheduler.totals.generated - before, time.perf_counter() - begun
    return {"rate": made / took, "thread_ms_a_step": 1e3 * (time.thread_time() - worked) / (made / rows)}


def profiled(model: Model, rows: int, context: int, tokenizer: Tokenizer) -> str:
    """Where the device's time goes in ten steps."""
    scheduler = Scheduler(Runner(model, rows, context), tokenizer)
    for seed in range(rows):
        scheduler.submit([5] * 16, Sampling(temperature=1, seed=seed, max_tokens=60, ignore_eos=True))
    while scheduler.waiting or scheduler.totals.generated < 8 * rows:
        scheduler.step()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(10):
            scheduler.step()
        model.device.synchronize()
    averages = found.key_averages()
    return "\n".join(
        averages.table(sort_by=key, row_limit=28, max_name_column_width=60)
        for key in ("self_device_time_total", "self_cpu_time_total")
    )


def serve(session: Session, rows: int, context: int, options: list[list[str]]) -> list[Any]:
    """Serve, ask, end; what each `bench serve` with these options said."""
    sockets, said = bind("127.0.0.1", PORT), list[Any]()

    def ask() -> None:
        url = f"http://127.0.0.1:{PORT}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        for each in options:
            command = [sys.executable, "-m", "flagrelease", "bench", "serve", url, "--json", *each]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            said.append(json.loads(result.stdout) if result.returncode == 0 else result.returncode)
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        serving.serve(session, serving.Serving("random", "chat", "127.0.0.1", PORT, sockets, context, rows, 64, 512, 5))
    except (KeyboardInterrupt, SystemExit):
        print("the server was interrupted", file=sys.stderr)
    asking.join()
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", default="flash")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--batch", default="1,64")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--answer", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scenario", choices=("chat", "long"), default="chat")
    parser.add_argument("--concurrency", help="of the served requests; default: the last of --batch")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    device = open_device(arguments.device)
    device.set_current()
    config = dimensions(arguments.dimensions, arguments.layers, arguments.experts)
    model = random_model(config, "native", "auto", device, 512)
    tokenizer, found = Tokenizer(arguments.tokenizer), dict[str, Any]()

    def note(name: str, value: Any) -> None:
        found[name] = value
        print(f"{time.perf_counter() - begun:6.1f} s  {name}: {value}", flush=True)
        arguments.out.write_text(json.dumps(found, indent=1))

    note("device", f"{device.name}, {config.num_hidden_layers} layers, {config.n_routed_experts} experts")
    batches = [int(each) for each in arguments.batch.split(",")]
    for rows in batches:
        note(f"step {rows}", step_rate(model, rows, arguments.context))
        note(f"scheduler {rows}", scheduler_rate(model, rows, arguments.context, tokenizer, arguments.tokens))
    if arguments.profile is not None:
        arguments.profile.write_text(profiled(model, batches[-1], arguments.context, tokenizer))
    rows = batches[-1]
    scenario, concurrency = ["--scenario", arguments.scenario], arguments.concurrency or str(rows)
    asked = [
        [*scenario, "--concurrency", concurrency.split(",")[0], "--rounds", "1", "--answer-tokens", "16"],
        [*scenario, "--concurrency", concurrency, "--rounds", str(arguments.rounds), "--answer-tokens",
         str(arguments.answer), "--seed", "1000"],
    ]  # fmt: skip
    for name, said in zip(
        ("warm", "serve"), serve(Session(arguments.tokenizer, model), rows, arguments.context, asked), strict=True
    ):
        note(name, said)
    note("step again", step_rate(model, rows, arguments.context))


if __name__ == "__main__":
    main()
