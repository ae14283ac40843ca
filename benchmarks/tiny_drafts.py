"""Tokens a second with drafts and without, on the trained model with DSpark's stages, whose drafts are often right.

    python benchmarks/tiny_drafts.py [--device cuda] [--batch 1 8] [--repeats 3] [--replies 24]

Greedy replies to held-out questions of examples/tiny, all prompts read before the clock starts. Each batch is run both
ways in turn, `--repeats` times after one that warms up; the medians are told, and whether the texts were equal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

TINY = Path(__file__).parents[1] / "examples" / "tiny"
CONTEXT = 320


def prompts(folder: Path, count: int) -> list[list[int]]:
    """Token ids of held-out questions, of both kinds in turn."""
    sys.path.insert(0, str(TINY))
    tasks, tokenizer = import_module("tasks"), import_module("tokenizer")
    encoder = tokenizer.load(folder)
    files = [tasks.read_items(tasks.FOLDER / name) for name in (tasks.INTEGERS_1, tasks.MULTIPLE_CHOICE)]
    asked = [question for pair in zip(*files, strict=False) for question, _ in pair][:count]
    return [tokenizer.encode(encoder, tokenizer.user_turn(question)) for question in asked]


class Run:
    """One runner; its scheduler is new for each pass, so that totals are a pass's own."""

    def __init__(self, model: Model, folder: Path, batch: int, *, speculate: bool) -> None:
        """`batch` rows."""
        self._runner = Runner(model, batch, CONTEXT, speculate=speculate)
        self._tokenizer, self._batch = Tokenizer(folder), batch
        self.accepted = self.drafted = 0

    def __call__(self, asked: Sequence[Sequence[int]]) -> tuple[float, list[str]]:
        """Tokens a second after the prompts were read, `batch` of them at a time; and the texts."""
        seconds, tokens, texts = 0.0, 0, list[str]()
        for begin in range(0, len(asked), self._batch):
            scheduler = Scheduler(self._runner, self._tokenizer)
            some = asked[begin : begin + self._batch]
            said = {scheduler.submit(each, Sampling(0, max_tokens=60)): list[Event]() for each in some}
            while not all(said.values()):  # every prompt is read, and its first token is there
                tell(said, scheduler.step())
            before, started = sum(events[-1].generated for events in said.values()), time.perf_counter()
            while scheduler.busy:
                tell(said, scheduler.step())
            seconds += time.perf_counter() - started
            tokens += sum(events[-1].generated for events in said.values()) - before
            texts += ["".join(event.text for event in events) for events in said.values()]
            self.drafted += scheduler.totals.drafted
            self.accepted += scheduler.totals.accepted
        return tokens / seconds, texts


def tell(said: dict[int, list[Event]], events: Sequence[Event]) -> None:
    """Give every sequence its events."""
    for event in events:
        said[event.key].append(event)


def main() -> None:
    """Print a line for each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=TINY / "flagrelease-tiny-v4-dspark")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replies", type=int, default=24)
    given = parser.parse_args()
    asked = prompts(given.folder, given.replies)
    model = engine.load(given.folder, device=given.device, mtp=True)
    assert isinstance(model, Model), "the small model is of V4"
    for batch in given.batch:
        runs = {speculate: Run(model, given.folder, batch, speculate=speculate) for speculate in (False, True)}
        texts = {speculate: run(asked)[1] for speculate, run in runs.items()}
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(given.repeats):
            for speculate, run in runs.items():
                rates[speculate].append(run(asked)[0])
        plain, drafted = (statistics.median(rates[speculate]) for speculate in (False, True))
        right = runs[True].accepted / max(runs[True].drafted, 1)
        print(
            f"batch {batch}: {plain:,.1f} tok/s without drafts, {drafted:,.1f} with ({drafted / plain:.2f} times), "
            f"{right:.1%} of drafts right, texts {'equal' if texts[False] == texts[True] else 'DIFFER'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
