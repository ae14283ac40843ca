"""Running the rows: a closed loop, in which each of `concurrency` callers asks again as soon as it is answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from flagrelease.bench.serve.endpoint import ServedModel
from flagrelease.bench.serve.figures import ServeFigures
from flagrelease.bench.serve.sample import RequestSample
from flagrelease.bench.serve.scenario import ScenarioRow, Sizes, write_prompt
from flagrelease.concurrently import run_together
from flagrelease.engine.batch.acceptance import Acceptance
from flagrelease.errors import NetworkError

_PROBES = 20, 120  # words of the prompts by which the server's tokens are measured
_LONGEST_PAUSE = 60.0  # seconds that a caller waits if it is told to


async def choose_model(endpoint: ServedModel, wanted: str | None) -> str:
    """The model to ask: the one that is wanted, or the only one.

    Raises:
        NetworkError: the server has several, or none.
    """
    if wanted is not None:
        return wanted
    names = await endpoint.models()
    if len(names) != 1:
        raise NetworkError(f"the server has {len(names)} models ({', '.join(names)}): choose one with --model")
    return names[0]


async def measure_sizes(endpoint: ServedModel, model: str) -> Sizes:
    """Ask two prompts of known words; a server that does not count is taken to have a token a word.

    Raises:
        NetworkError: it does not answer.
    """
    counts = []
    for seed, words in enumerate(_PROBES):
        sample = await endpoint.ask(model, write_prompt(words, seed), max_tokens=2)
        if sample.failure not in (None, "empty"):  # two tokens may be no text
            raise NetworkError(f"the first request failed ({sample.failure}): {sample.detail}")
        if sample.prompt_tokens is None:
            return Sizes(0, 1)
        counts.append((words, sample.prompt_tokens))
    return Sizes.fit(counts[0], counts[1])


async def run_row(
    endpoint: ServedModel, model: str, row: ScenarioRow, rounds: int, words: int, seeds: Iterator[int]
) -> tuple[list[RequestSample], float, Acceptance | None]:
    """One request to warm up, then `rounds` for each caller.

    Returns their samples, the seconds they took, and what became of drafts meanwhile, if the server tells.
    """

    async def ask() -> RequestSample:
        return await endpoint.ask(model, write_prompt(words, next(seeds)), row.answer_tokens)

    async def caller() -> list[RequestSample]:
        samples = []
        for _ in range(rounds):
            samples.append(await ask())
            await asyncio.sleep(min(samples[-1].retry_after, _LONGEST_PAUSE))
        return samples

    await ask()
    before, begun = await endpoint.acceptance(), time.perf_counter()
    samples = await run_together(caller() for _ in range(row.concurrency))
    seconds, after = time.perf_counter() - begun, await endpoint.acceptance()
    seen = None if before is None or after is None else after - before
    return list(itertools.chain.from_iterable(samples)), seconds, seen


async def run_rows(
    endpoint: ServedModel,
    model: str,
    rows: Sequence[ScenarioRow],
    rounds: int,
    seed: int,
    done: Callable[[ServeFigures], None],
) -> list[ServeFigures]:
    """All rows, one after the other; `done` is called after each.

    Raises:
        NetworkError: the server does not answer the first request.
    """
    sizes, seeds, results = await measure_sizes(endpoint, model), itertools.count(seed), []
    for row in rows:
        words = sizes.words(row.prompt_tokens)
        samples, seconds, drafts = await run_row(endpoint, model, row, rounds, words, seeds)
        results.append(ServeFigures.of(row, samples, seconds, drafts))
        done(results[-1])
    return results
