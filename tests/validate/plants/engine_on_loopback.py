"""Our own engine behind OpenAI's protocol on loopback, in a thread of the test: sound, or with planted defects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from on_loopback import on_loopback

from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model

NAME = "port"


@dataclass(frozen=True)
class Start:
    """How a server is started. `chunk`: tokens of a prompt that a pass reads. `spoil`: what is planted."""

    context: int = 1024
    rows: int = 4
    chunk: int = 64
    speculate: bool = False
    spoil: Callable[[Model], Model] | None = None


@contextmanager
def serving(release: Path, model: Model, start: Start) -> Iterator[str]:
    """Serve; gives the address with /v1. The model's chunk is set back afterwards."""
    served = model if start.spoil is None else start.spoil(model)
    before, served.chunk = served.chunk, start.chunk
    tokenizer = Tokenizer(release)
    runner = Runner(served, start.rows, start.context, speculate=start.speculate)
    service = Service(Scheduler(runner, tokenizer), queue_limit=64)
    app = make_app(Served(service, tokenizer, NAME, "chat", read_efforts(release)))
    try:
        with on_loopback(app, service) as address:
            yield f"{address}/v1"
    finally:
        served.chunk = before
