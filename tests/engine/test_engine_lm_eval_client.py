"""lm-eval's own clients score texts against the server as the model itself does, whatever the script of the text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.gguf import GGUFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from on_loopback import on_loopback
from small_tokenizer import SPECIAL, write_tokenizer

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.model.v4.efforts import efforts_of

PAIRS = [
    ("The capital of France is", " Paris"), ("中国的首都是", "北京。"), ("Straße — café:", " Ünïcode"),
    ("🎉👩‍👩‍👧 smile", " 🙂🙃"), ("e\u0301a\u0302 combining", " o\u0308\u0301"), ("한국어", " हिन्दी עברית"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[1], "pad_token": SPECIAL[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model(quick_release: Path) -> Model:
    return engine.load(quick_release, "bf16", torch.float32)


@pytest.fixture(scope="module")
def address(model: Model, folder: Path) -> Iterator[str]:
    tokenizer = Tokenizer(folder)
    service = Service(Scheduler(Runner(model, rows=3, context=400), tokenizer), queue_limit=20)
    app = make_app(Served(service, tokenizer, "small", "chat", efforts_of("preview")))
    with on_loopback(app, service) as address:
        yield address


def directly(model: Model, folder: Path, context: str, continuation: str) -> tuple[float, bool]:
    """Log-probability of the continuation, and whether each of its tokens is the likeliest."""
    encode = Tokenizer(folder).encode
    before, whole = len(encode(context)), encode(context + continuation)
    logp = model.logits(whole)[:-1].double().log_softmax(-1)
    rows, tokens = range(before - 1, len(whole) - 1), whole[before:]
    greedy = logp[before - 1 :].argmax(-1).tolist() == tokens
    return sum(float(logp[row, token]) for row, token in zip(rows, tokens, strict=True)), greedy


def asked(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]


@pytest.mark.parametrize("as_tokens", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_local_completions(address: str, model: Model, folder: Path, as_tokens: bool, batch: int) -> None:
    client: Any = LocalCompletionsAPI(
        base_url=f"{address}/v1/completions", model="small", tokenizer=str(folder), tokenizer_backend="huggingface",
        tokenized_requests=as_tokens, batch_size=batch, max_length=400, max_retries=1,
    )  # fmt: skip
    expected = [directly(model, folder, *pair) for pair in PAIRS]
    got = client.loglikelihood(asked(PAIRS), disable_tqdm=True)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_the_client_that_reads_places(
    address: str, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # places were counted in U+FFFD, three for each Chinese character: it scored other tokens, 75 nats off
    post = requests.post
    monkeypatch.setattr(requests, "post", lambda url, json: post(url, json={"model": "small", **json}))
    expected = [directly(model, folder, *pair) for pair in PAIRS]
    got = GGUFLM(base_url=address, max_length=400).loglikelihood(asked(PAIRS), disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=1e-4)
