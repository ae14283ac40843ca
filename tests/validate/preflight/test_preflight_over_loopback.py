"""The pre-flight over HTTP, against our own server with an actor for a model: all is asked, and faults are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from acting_server import NAME, acting
from endpoint_standin import Answer, Standin, completion
from small_tokenizer import write_tokenizer

from flagrelease.engine.text import Tokenizer
from flagrelease.model import turns
from flagrelease.model.v4.efforts import Efforts, efforts_of
from flagrelease.records.rules import PreflightRules
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.preflight.asking import PreflightAsker, PreflightReplies
from flagrelease.validate.preflight.check import CHECKS
from flagrelease.validate.preflight.stage import Meant, judge_replies

RULES = PreflightRules()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


def asked(folder: Path, *faults: str, efforts: Efforts | None = None) -> PreflightReplies:
    with acting(folder, *faults) as url:
        efforts = efforts_of("0731") if efforts is None else efforts
        return PreflightAsker(Endpoint(url, NAME), efforts, Tokenizer(folder), RULES, lambda done, total: None).ask()


def judged(replies: PreflightReplies, name: str = NAME) -> dict[str, str]:
    meant = Meant(name, 0, 1000, "the test", 1 << 20)
    return {check.id: check.verdict for check in judge_replies(replies, meant, RULES)}


def failed(replies: PreflightReplies) -> set[str]:
    return {id_ for id_, verdict in judged(replies).items() if verdict != "pass"}


@pytest.fixture(scope="module")
def good(folder: Path) -> PreflightReplies:
    return asked(folder)


def test_a_good_model_on_our_server_passes_every_check(good: PreflightReplies) -> None:
    assert judged(good) == dict.fromkeys(CHECKS, "pass")
    assert judged(good, "another")["identity"] == "fail"
    assert len(good.every) > 40


@pytest.mark.parametrize(
    ("faults", "caught"),
    [
        (("deaf to seeds", "deaf to stops"), {"seeds", "stop-string"}),
        (("forgetful",), {"greedy", "streamed", "stop-string"}),
    ],
)
def test_faults_of_a_model_are_caught_by_their_checks_alone(
    folder: Path, faults: tuple[str, ...], caught: set[str]
) -> None:
    assert failed(asked(folder, *faults)) == caught


def test_a_server_with_another_chat_encoding_is_caught(
    folder: Path, good: PreflightReplies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a template that writes the begin token, before a tokenizer that adds it."""
    monkeypatch.setattr(turns, "BOS", 2 * turns.BOS)
    doubled = asked(folder)
    pairs = zip(good.prompts, doubled.prompts, strict=True)
    served = tuple(replace(right, reply=wrong.reply) for right, wrong in pairs)
    found = judged(replace(doubled, prompts=served))
    assert {found["prompt-tokens"], found["one-bos"], found["efforts"]} == {"fail"}
    told = judge_replies(replace(doubled, prompts=served), Meant(NAME, 0, 1000, "the test", 1 << 20), RULES)
    assert [set(check.fixes) for check in told if check.verdict == "fail"] == [{"flagrelease"}] * 3


def test_efforts_of_another_revision_are_caught(folder: Path) -> None:
    """The server has the texts of 0731, as vLLM has for every checkpoint; the release is the preview's."""
    assert {"prompt-tokens", "efforts"} <= failed(asked(folder, efforts=efforts_of("preview")))


def test_replies_that_cannot_be_read_fail_the_checks_that_asked_for_them(folder: Path) -> None:
    """A stream that comes whole, arguments that are an object, log-probabilities in words, a list that is none."""

    def behave(request: dict[str, Any]) -> Answer | None:
        if request.get("tool_choice") == "required":
            function = {"name": "get_weather", "arguments": {"city": "Oslo"}}
            return completion("", tool_calls=[{"id": "1", "type": "function", "function": function}])
        if request.get("logprobs"):
            answer = completion("A")
            answer.document["choices"][0]["logprobs"] = {"content": [{"token": "A", "logprob": "low"}]}
            return answer
        return None

    with Standin(behave, {"/v1/models": Answer(document={"data": 3})}) as standin:
        asker = PreflightAsker(
            Endpoint(standin.url, "m"), efforts_of("0731"), Tokenizer(folder), RULES, lambda done, total: None
        )
        checks = judge_replies(asker.ask(), Meant("m", 0, 1000, "the test", 1 << 20), RULES)
    came = {check.id: check.came for check in checks if check.verdict == "fail" and check.fixes}
    assert came["identity"] == "no list (the reply is not a list of models)"
    assert came["streamed"] == "the reply is not a stream of a chat completion with its usage"
    assert came["tool-call"] == came["logprobs"] == came["usage"]
    assert came["usage"] == "the reply is not a chat completion with one choice and its usage"
