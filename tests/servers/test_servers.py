"""Stages against servers of others, which share no code with ours: vLLM on a CPU, and `transformers serve`."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from flagrelease import cli
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk, CompletionAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.replies import (
    ChatReply,
    CompletionReply,
    StreamedReply,
    TokenizedPrompt,
    Unsupported,
)

pytestmark = pytest.mark.servers
EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = EXAMPLES / "tiny" / "flagrelease-tiny-v4"
CHAT = ChatAsk(({"role": "user", "content": "Which is the largest?"},), 8)
Result = TypeVar("Result")


def ask(server: tuple[str, str], call: Callable[[EndpointClient], Awaitable[Result]]) -> Result:
    async def work() -> Result:
        async with EndpointClient(Endpoint(*server, dialect="template", timeout=300)) as client:
            return await call(client)

    return asyncio.run(work())


def stages(server: tuple[str, str], release: Path, folder: Path, *options: str, **validation: Any) -> dict[str, Any]:
    """What `validate` says of each stage; its exit code is not 0, since the logits are not asked for."""
    questions = folder / "integers.jsonl"
    with (EXAMPLES / "tiny" / "tasks" / "integers_year1.jsonl").open() as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 12)]
    questions.write_text("".join(json.dumps({k: row[k] for k in ("problem", "answer")}) + "\n" for row in rows))
    document = yaml.safe_load((EXAMPLES / "demo.yaml").read_text())
    document["source"]["path"] = str(TINY)
    document["validation"] |= validation
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document, allow_unicode=True))
    asked = ["--recipe", str(recipe), "--data", f"integers={questions}", "--device", "cpu"]
    there = ["--endpoint", server[0], "--model", server[1], "--dialect", "template", "--concurrency", "4"]
    native = there if "--native-too" in options else []
    for part in ("benchmarks", "behaviour"):
        words = ["baseline", "record", str(TINY), "--out", str(folder / "baseline"), "--part", part]
        assert cli.main([*words, *asked, *native]) == 0
    words = ["validate", str(release), "--chip", "ascend", "--baseline", str(folder / "baseline")]
    assert cli.main([*words, *asked, *there, "--out", str(folder / "out")]) in (5, 7)
    report = json.loads((folder / "out" / "report.json").read_bytes())
    return {stage["name"]: stage for stage in report["stages"]} | {"environment": report["environment"]}


def test_vllm_tells_everything_that_the_stages_ask_for(vllm: tuple[str, str]) -> None:
    (model,) = ask(vllm, EndpointClient.models)  # type: ignore[misc]
    assert (model.id, model.context, model.owned_by) == ("tiny", 4096, "vllm")
    assert ask(vllm, EndpointClient.told) == {"server": "uvicorn", "version": "0.32.0", "owned_by": "vllm"}
    wanted = ChatAsk(CHAT.messages, 8, logprobs=2, token_ids=True)
    whole, streamed = ask(vllm, lambda client: client.chat(wanted)), ask(vllm, lambda client: client.stream(wanted))
    tokenized = ask(vllm, lambda client: client.tokenize(CHAT))
    assert isinstance(whole, ChatReply)
    assert isinstance(streamed, StreamedReply)
    assert isinstance(tokenized, TokenizedPrompt)
    assert streamed.done
    assert (streamed.reply.reasoning, streamed.reply.content) == (whole.reasoning, whole.content)
    assert streamed.reply.logprobs == whole.logprobs
    assert streamed.reply.token_ids == whole.token_ids
    assert whole.prompt_token_ids == tokenized.ids


def test_vllm_scores_a_prompt_alike_in_its_two_ways(vllm: tuple[str, str]) -> None:
    ids = (0, 5, 6, 90, 91, 200)
    told = ask(vllm, lambda client: client.complete(CompletionAsk(ids, 1, prompt_logprobs=3)))
    echoed = ask(vllm, lambda client: client.complete(CompletionAsk(ids, 1, echo=True, logprobs=3)))
    assert isinstance(told, CompletionReply)
    assert isinstance(echoed, CompletionReply)
    assert told.prompt_logprobs is not None
    assert echoed.logprobs is not None
    assert [token.id for token in told.prompt_logprobs] == list(ids)
    own = [token.logprob for token in told.prompt_logprobs]
    assert own == pytest.approx([token.logprob for token in echoed.logprobs[: len(ids)]], abs=1e-5)
    assert all(len(token.top) == 3 and token.rank is not None for token in told.prompt_logprobs[1:])
    nothing = ask(vllm, lambda client: client.complete(CompletionAsk(ids, 0, prompt_logprobs=3)))
    assert str(nothing) == "completions with prompt_logprobs: HTTP 400 (max_tokens)"  # with echo it takes 0


def test_stages_over_vllm(vllm: tuple[str, str], release: Path, tmp_path: Path) -> None:
    """A random model can pass nothing that it must know; prompts, requests and answers are vLLM's own."""
    random = dict.fromkeys(("efforts", "no-markup", "reasoning-apart", "own-call", "bad-request", "ends", "tool-call"))
    accepted = dict.fromkeys((*random, "prompt-tokens"), "a random model, and a tokenizer of another revision")
    rules = {
        "preflight": {"thinking_tokens": 64, "accepted": accepted},
        "invariance": {"texts": 2, "lengths": [60, 100, 128], "max_tokens": 24, "concurrency": [4]},
    }
    found = stages(vllm, release, tmp_path, "--native-too", **rules)
    assert found["environment"]["version (the server's word)"] == "0.32.0"
    assert found["preflight"]["verdict"] == "pass"
    checks = {check["id"]: check for check in found["preflight"]["figures"]["checks"]}
    passed = {name for name, check in checks.items() if check["verdict"] == "pass"}
    sure = {
        "identity",
        "context",
        "one-bos",
        "stop-string",
        "no-reasoning",
        "tool-stream",
        "greedy",
        "seeds",
        "logprobs",
    }
    assert passed >= sure | {"usage", "streamed"}
    assert "one turn, high: 370 for 19" in checks["prompt-tokens"]["came"]  # the preview's efforts are read as 0731's
    assert found["behaviour"]["figures"]["token_mismatches"] == found["behaviour"]["figures"]["only_counted"] == []
    assert found["benchmarks"]["verdict"] == found["behaviour"]["verdict"] == "not-informative"


def test_the_same_model_behind_transformers_serve(transformers: tuple[str, str], release: Path, tmp_path: Path) -> None:
    """An implementation of DeepSeek-V4 that is not ours answers as the bundled engine does, within the margins."""
    found = stages(transformers, release, tmp_path, preflight=None, invariance=None)
    assert found["benchmarks"]["verdict"] == "pass"
    assert found["behaviour"]["verdict"] in ("pass", "cannot-tell")
    figures = found["behaviour"]["figures"]
    assert figures["token_mismatches"] == []
    assert len(figures["only_counted"]) == figures["prompts"]  # it has no /tokenize
    for what in (ChatAsk(CHAT.messages, 8, logprobs=1), ChatAsk(CHAT.messages, 8, token_ids=True)):
        assert isinstance(ask(transformers, lambda client, what=what: client.chat(what)), Unsupported)  # type: ignore[misc]
