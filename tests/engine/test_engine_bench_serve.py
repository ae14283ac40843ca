"""`bench serve` measures this package's own server: what it counts is what the server did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from on_loopback import on_loopback
from small_tokenizer import write_tokenizer
from typer.testing import CliRunner

from flagrelease import engine
from flagrelease.bench.serve.commands import register
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.efforts import efforts_of


@pytest.fixture(scope="module")
def server(quick_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    """Two rows and one place to wait; answers end by length only."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = Tokenizer(folder)
    model = engine.load(quick_release, "bf16", torch.float32, mtp=True)
    model.config = model.config.model_copy(update={"eos_token_id": -1})
    service = Service(Scheduler(Runner(model, rows=2, context=2000, speculate=True), tokenizer), queue_limit=1)
    app = make_app(Served(service, tokenizer, "small", "chat", efforts_of("preview")))
    with on_loopback(app, service) as address:
        yield f"{address}/v1", service


def test_rows_and_refusals(server: tuple[str, Service]) -> None:
    address, service = server
    app = typer.Typer()
    register(app)
    words = [address, "--scenario", "chat", "--scenario", "context", "--concurrency", "2,6", "--contexts", "600,5000",
             "--chat-tokens", "300", "--answer-tokens", "8", "--rounds", "2", "--json"]  # fmt: skip
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    two, six, fits, too_long = json.loads(result.stdout)["rows"]
    assert (two["answered"], two["failures"], two["tokens"]) == (4, {}, 4 * 8)
    assert two["counted"]
    assert 250 < two["prompt_tokens"] < 350
    assert two["throughput"] == pytest.approx(32 / two["seconds"])
    assert 0 < two["first"]["p50"] <= two["first"]["p99"] < two["whole"]["p99"] <= two["seconds"]
    # six callers at once where three fit
    assert six["answered"] + sum(six["failures"].values()) == 12
    assert six["failures"].keys() == {"429"}
    assert six["failures"]["429"] == service.load.refused >= 3
    assert (fits["answered"], too_long["answered"], too_long["failures"]) == (2, 0, {"400": 2})
    assert "the context is 2000" in result.stderr
    # an answer of 8 tokens: the first is the prompt's, the last is not drafted for
    drafts = two["drafts"]
    assert drafts["verifications"] + drafts["accepted_by_place"][0] >= 4 * 6
    assert drafts["verified_by_place"] == [drafts["verifications"]]
    assert drafts["tokens_per_verification"] == 1 + drafts["accepted_by_place"][0] / drafts["verifications"]
    assert "random words" in drafts["of"]
    assert "chat, 300 tokens, 2 at once: 1." in result.stderr
    assert "how many drafts were right was counted by the server" in result.stderr
