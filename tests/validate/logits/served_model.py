"""A model served on this machine, as `flagrelease serve` does, for as long as a test asks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from on_loopback import on_loopback
from small_tokenizer import write_tokenizer

from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.serve.served import Served
from flagrelease.engine.serve.server import make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.validate.endpoint.address import Endpoint

NAME = "small"


@contextmanager
def serving(model: Model, folder: Path, context: int = 200, rows: int = 4) -> Iterator[Endpoint]:
    """Serve a model; its tokenizer is written into `folder` if there is none."""
    if not (folder / "tokenizer.json").is_file():
        write_tokenizer(folder)
    tokenizer = Tokenizer(folder)
    service = Service(Scheduler(Runner(model, rows=rows, context=context), tokenizer), queue_limit=64)
    app = make_app(Served(service, tokenizer, NAME, "chat", efforts_of("preview")))
    with on_loopback(app, service) as address:
        yield Endpoint(f"{address}/v1", NAME, concurrency=4)
