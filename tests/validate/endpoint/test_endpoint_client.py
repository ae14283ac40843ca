"""What servers give back, in the forms of vLLM, SGLang and ours, and what they cannot: over loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from endpoint_standin import Answer, Standin, completion, streamed

from flagrelease.errors import NetworkError
from flagrelease.model.v4.dsml import ToolCall
from flagrelease.retry import Patience
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk, CompletionAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.replies import (
    ChatReply,
    CompletionReply,
    ScoredToken,
    ServedModel,
    StreamedReply,
    TokenizedPrompt,
    TokensUsed,
    Unsupported,
)

Result = TypeVar("Result")
CHAT = ChatAsk(({"role": "user", "content": "Hi"},), 8)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}


def ask(standin: Standin, call: Callable[[EndpointClient], Awaitable[Result]], attempts: int = 1) -> Result:
    async def work() -> Result:
        patience = Patience(attempts=attempts)
        async with EndpointClient(Endpoint(standin.url, "m", timeout=10.0), patience) as client:
            return await call(client)

    return asyncio.run(work())


def chat(answer: Answer, asked: ChatAsk = CHAT) -> ChatReply | Unsupported:
    with Standin(lambda request: answer) as standin:
        return ask(standin, lambda client: client.chat(asked))


def complete(document: Any, asked: CompletionAsk) -> CompletionReply | Unsupported:
    with Standin(lambda request: Answer(document=document)) as standin:
        return ask(standin, lambda client: client.complete(asked))


def stream(*chunks: Any, done: bool = True) -> StreamedReply | Unsupported:
    with Standin(lambda request: streamed(*chunks, done=done)) as standin:
        return ask(standin, lambda client: client.stream(CHAT))


def stream_of(content: str) -> StreamedReply | Unsupported:
    with Standin(lambda request: Answer(content=content.encode())) as standin:
        return ask(standin, lambda client: client.stream(CHAT))


def told(logprob: float, rank: int, text: str) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": text}


def test_models_and_what_the_server_says_of_itself() -> None:
    listed = {"data": [{"id": "m", "max_model_len": 4096, "owned_by": "vllm", "root": "/x"}, {"id": "n"}]}
    at = {"/v1/models": Answer(document=listed), "/version": Answer(document={"version": "0.33.0"})}
    with Standin(at=at) as standin:
        assert ask(standin, EndpointClient.models) == (ServedModel("m", 4096, "vllm"), ServedModel("n", None, None))
        said = ask(standin, EndpointClient.told)
    assert said.pop("server").startswith("BaseHTTP/")
    assert said == {"version": "0.33.0", "owned_by": "vllm"}
    with Standin() as bare:
        assert ask(bare, EndpointClient.models) == Unsupported("/v1/models", "HTTP 404", 404)
        assert ask(bare, EndpointClient.told).keys() == {"server"}
    with Standin(at={"/v1/models": Answer(500, {})}) as troubled:
        assert ask(troubled, EndpointClient.told, attempts=8).keys() == {"server"}
    assert ask(troubled, EndpointClient.told, attempts=8) == {}
    assert troubled.paths == ["/v1/models", "/version"]


def test_fields_that_are_not_given_are_not_sent() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    with Standin() as standin:
        ask(standin, lambda client: client.chat(CHAT))
        whole = ChatAsk(
            CHAT.messages,
            8,
            0.5,
            0.9,
            7,
            None,
            (tool,),
            "required",
            {"type": "json_object"},
            0,
            1,
            True,
            ("x",),
            {"a": 1},
        )
        ask(standin, lambda client: client.chat(whole))
        ask(standin, lambda client: client.complete(CompletionAsk((1, 2), 0, echo=True, logprobs=1, extra={"b": 2})))
    assert standin.paths == ["/v1/chat/completions", "/v1/chat/completions", "/v1/completions"]
    plain = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    assert standin.requests[0] == plain | {"temperature": 0.0, "top_p": 1.0}
    assert standin.requests[1] == plain | {
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "tools": [tool], "tool_choice": "required",
        "response_format": {"type": "json_object"}, "logprobs": True, "top_logprobs": 0, "prompt_logprobs": 1,
        "return_token_ids": True, "stop": ["x"], "a": 1,
    }  # fmt: skip
    assert standin.requests[2] == {
        "model": "m", "prompt": [1, 2], "max_tokens": 0, "temperature": 0.0, "top_p": 1.0, "echo": True, "logprobs": 1,
        "b": 2,
    }  # fmt: skip


def test_a_chat_with_everything() -> None:
    """vLLM's form; SGLang puts ids of the prompt into the choice and calls the others response_token_ids."""
    scored = {"token": "token_id:5", "logprob": -0.5, "bytes": [65], "top_logprobs": [{"token": "A", "logprob": -0.5}]}
    document = {
        "choices": [{
            "index": 0, "finish_reason": "tool_calls", "logprobs": {"content": [scored]}, "token_ids": [5, 6],
            "message": {
                "content": None, "reasoning": "hm", "reasoning_content": "hm",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
        }],
        "usage": USAGE, "prompt_token_ids": [0, 1, 2],
        "prompt_logprobs": [
            None, {"1": told(-1.0, 1, "a")}, {"2": told(-9.0, 70, "b"), "8": told(-0.1, 1, "c")},
        ],
    }  # fmt: skip
    reply = chat(Answer(document=document), ChatAsk(CHAT.messages, 8, logprobs=1, prompt_logprobs=1, token_ids=True))
    assert isinstance(reply, ChatReply)
    assert (reply.content, reply.reasoning, reply.finish) == ("", "hm", "tool_calls")
    assert reply.tool_calls == (ToolCall("f", "{}"),)
    assert reply.used == TokensUsed(3, 2, 1)
    assert reply.logprobs == (ScoredToken("token_id:5", 5, -0.5, None, (ScoredToken("A", None, -0.5),)),)
    one = ScoredToken("a", 1, -1.0, 1)
    assert reply.prompt_logprobs == (
        ScoredToken("", 0, None),
        ScoredToken("a", 1, -1.0, 1, (one,)),
        ScoredToken("b", 2, -9.0, 70, (ScoredToken("c", 8, -0.1, 1),)),  # beyond the ones asked for: beside them
    )
    assert (reply.token_ids, reply.prompt_token_ids) == ((5, 6), (0, 1, 2))
    choice = document["choices"][0]  # type: ignore[index]
    choice |= {"prompt_token_ids": document.pop("prompt_token_ids"), "response_token_ids": choice.pop("token_ids")}
    again = chat(Answer(document=document), ChatAsk(CHAT.messages, 8))
    assert isinstance(again, ChatReply)
    assert (again.token_ids, again.prompt_token_ids) == ((5, 6), (0, 1, 2))


def test_a_prompt_is_scored_in_three_ways() -> None:
    """`prompt_logprobs` of vLLM and ours; `echo` of SGLang and others, whose alternatives are texts."""
    usage = {"prompt_tokens": 2, "completion_tokens": 0}
    vllm = {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": [
        None, {"7": told(-2.0, 2, "b"), "4": told(-0.5, 1, "c")},
    ]}], "usage": usage}  # fmt: skip
    reply = complete(vllm, CompletionAsk((3, 7), 0, prompt_logprobs=1))
    assert isinstance(reply, CompletionReply)
    likely, own = ScoredToken("c", 4, -0.5, 1), ScoredToken("b", 7, -2.0, 2)
    assert reply.prompt_logprobs == (ScoredToken("", 3, None), ScoredToken("b", 7, -2.0, 2, (likely, own)))
    echo = {"choices": [{"text": "ab", "finish_reason": "length", "logprobs": {
        "tokens": ["a", "b"], "token_logprobs": [None, -2.0], "text_offset": [0, 1],
        "top_logprobs": [None, {"b": -2.0, "c": -0.5}],
    }}], "usage": usage}  # fmt: skip
    reply = complete(echo, CompletionAsk("ab", 0, echo=True, logprobs=1))
    assert isinstance(reply, CompletionReply)
    assert reply.text == "ab"
    assert reply.logprobs == (
        ScoredToken("a", None, None),
        ScoredToken("b", None, -2.0, None, (ScoredToken("c", None, -0.5),)),  # one was asked for, the own comes besides
    )


def test_a_stream_is_put_together_and_kept() -> None:
    def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    def call(at: int, name: str | None, arguments: str) -> list[Any]:
        return [{"index": at, "function": {"name": name, "arguments": arguments}}]

    chunks = [
        chunk(role="assistant", content=""), chunk(reasoning="h\u2028"), chunk(reasoning_content="m"),
        chunk(content="A"),
        chunk(tool_calls=call(0, "f", "")), chunk(tool_calls=call(0, None, "{")), chunk(tool_calls=call(1, "g", "{}")),
        chunk(tool_calls=call(0, None, "}")), chunk("tool_calls", content=None), {"choices": [], "usage": USAGE},
    ]  # fmt: skip
    got = stream(*chunks)
    assert isinstance(got, StreamedReply)
    assert (got.chunks, got.done) == (tuple(chunks), True)
    assert (got.reply.reasoning, got.reply.content, got.reply.finish) == ("h\u2028m", "A", "tool_calls")
    assert got.reply.tool_calls == (ToolCall("f", "{}"), ToolCall("g", "{}"))
    assert got.reply.used == TokensUsed(3, 2, 1)
    cut = stream(*chunks, done=False)
    assert isinstance(cut, StreamedReply)
    assert not cut.done


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([{"choices": []}], "not a stream of a chat completion with its usage"),
        ([[]], "a chunk of the stream is no object"),
        ([{"error": {"message": "SECRET"}}], "the stream ended with an error of the server"),
        ([{"choices": [{"index": 0, "delta": {"tool_calls": [{}]}}], "usage": USAGE}], "not a stream"),
        ([{"choices": [{"index": 1, "delta": {}}], "usage": USAGE}], "not a stream"),
    ],
)
def test_streams_that_are_none(chunks: list[Any], said: str) -> None:
    with pytest.raises(NetworkError, match=said) as caught:
        stream(*chunks)
    assert "SECRET" not in str(caught.value)


def test_what_is_tokenized_where() -> None:
    document = {"count": 2, "max_model_len": 99, "tokens": [4, 5]}
    with Standin(at={"/tokenize": Answer(document=document)}) as standin:
        assert ask(standin, lambda client: client.tokenize("Hi")) == TokenizedPrompt((4, 5), 99)
        assert ask(standin, lambda client: client.tokenize(CHAT)) == TokenizedPrompt((4, 5), 99)
    assert standin.requests[0] == {"model": "m", "prompt": "Hi", "add_special_tokens": False}
    assert standin.requests[1] == {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    with Standin(at={"/tokenize": Answer(document={"tokens": []})}) as other:  # llama.cpp's form
        got = ask(other, lambda client: client.tokenize("Hi"))
    assert got == Unsupported("tokenize", "the reply is not a list of token ids with its count")


@pytest.mark.parametrize("status", [400, 404, 405, 422, 501])
def test_what_a_server_does_not_do_is_a_result(status: int) -> None:
    """It names the field that the server blames, if that is one of the request's, and nothing else that it wrote."""
    refusal = Answer(status, {"error": {"message": "SECRET", "param": "prompt_logprobs"}})
    got = chat(refusal, ChatAsk(CHAT.messages, 8, prompt_logprobs=1))
    reason = f"HTTP {status} (prompt_logprobs)"
    assert got == Unsupported("chat/completions with prompt_logprobs", reason, status)
    assert str(got) == f"chat/completions with prompt_logprobs: {reason}"
    other = chat(Answer(status, {"error": {"param": "SECRET"}}))
    assert other == Unsupported("chat/completions", f"HTTP {status}", status)
    with Standin(lambda request: refusal) as standin:
        streamed = ask(standin, lambda client: client.stream(CHAT))
    assert streamed == Unsupported("chat/completions", f"HTTP {status}", status)


def test_a_reply_without_what_was_asked_for_says_so_and_is_kept() -> None:
    got = chat(completion("A"), ChatAsk(CHAT.messages, 8, logprobs=1, prompt_logprobs=1))
    assert isinstance(got, Unsupported)
    assert str(got) == (
        "chat/completions with logprobs, prompt_logprobs: the reply has no logprobs and no prompt_logprobs"
    )
    assert isinstance(got.reply, ChatReply)
    assert got.reply.content == "A"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"content": "\ud800"},
        {"content": [1]},
        {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"reasoning": 5},
    ],
)
def test_answers_of_the_wrong_type(spoilt: dict[str, Any]) -> None:
    document = completion("A").document
    document["choices"][0]["message"] |= spoilt
    with pytest.raises(NetworkError, match="not a chat completion with one choice and its usage"):
        chat(Answer(content=json.dumps(document).encode()))


@pytest.mark.parametrize(
    "given",
    [
        [None, {"5": {"logprob": -1.0}}],  # of another prompt
        [None],
        [None, {}],
        [None, {"7": {"logprob": "-1"}}],
        [None, {"7": {"logprob": -1.0, "rank": 0}}],
        [None, {"x": {"logprob": -1.0}}],
    ],
)
def test_log_probabilities_that_are_none(given: Any) -> None:
    document = {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": given}], "usage": USAGE}
    with pytest.raises(NetworkError, match="not a completion with one choice and its usage"):
        complete(document, CompletionAsk((3, 7), 0, prompt_logprobs=1))


def test_what_passes_is_waited_out_in_streams_too() -> None:
    answers: Iterator[Answer] = iter([Answer(503, {}, {"retry-after": "0"}), Answer(429, {}, {"retry-after": "0"})])
    whole = streamed({"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": "stop"}], "usage": USAGE})
    with Standin(lambda request: next(answers, whole)) as standin:
        got = ask(standin, lambda client: client.stream(CHAT), attempts=3)
    assert isinstance(got, StreamedReply)
    assert (got.reply.content, len(standin.requests)) == ("A", 3)


def test_a_500_that_stays_says_that_a_server_does_not_do_it() -> None:
    """transformers serve answers it to /v1/models without a hub's cache, and to echo with no new token."""
    broken = Answer(500, {}, {"retry-after": "0"})
    with Standin(lambda request: broken, {"/v1/models": broken}) as standin:
        scored = ask(standin, lambda client: client.complete(CompletionAsk("Hi", 0, echo=True)), attempts=8)
        assert scored == Unsupported("completions with echo", "HTTP 500, 3 times", 500)
        assert ask(standin, EndpointClient.models, attempts=8) == Unsupported("/v1/models", "HTTP 500, 3 times", 500)
        assert len(standin.paths) == 6
        with pytest.raises(NetworkError, match="HTTP 500; tried 4 times"):  # every server has plain chats
            ask(standin, lambda client: client.chat(CHAT), attempts=4)


@pytest.mark.parametrize("logprob", ["1" + "0" * 400, "true"])
def test_a_log_probability_that_no_float_holds_is_an_error_in_words(logprob: str) -> None:
    content = json.dumps(completion("a").document).replace(
        '"index"', f'"logprobs": {{"content": [{{"token": "a", "logprob": {logprob}}}]}}, "index"'
    )
    with pytest.raises(NetworkError, match="the reply is not a chat completion"):
        chat(Answer(content=content.encode()))


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    scored = {"content": [{"token": "\ud83d", "logprob": -1}]}
    for choice in ({"delta": {"content": "\ud83d"}}, {"delta": {"content": "a"}, "logprobs": scored}):
        chunk = json.dumps({"choices": [{"index": 0} | choice], "usage": USAGE})  # as an escape, which JSON allows
        with pytest.raises(NetworkError, match="the reply is not a stream of a chat completion"):
            stream_of(f"data: {chunk}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("token", ["-1", str(2**63)])
def test_an_id_that_no_vocabulary_has_is_an_error_in_words(token: str) -> None:
    choice = {
        "text": "",
        "finish_reason": "length",
        "prompt_logprobs": [None, {"5": told(-1.0, 1, "a"), token: told(-2.0, 2, "b")}],
    }
    with pytest.raises(NetworkError, match="the reply is not a completion"):
        complete({"choices": [choice], "usage": USAGE}, CompletionAsk((0, 5), 1, prompt_logprobs=2))


def test_what_a_server_says_of_itself_cannot_write_on_a_terminal() -> None:
    listed = {"data": [{"id": "m", "owned_by": "v\x1b[2J\n\u202e" + "l" * 1000}]}
    at = {"/v1/models": Answer(document=listed), "/version": Answer(document={"version": "1\r2"})}
    with Standin(at=at) as standin:
        said = ask(standin, EndpointClient.told)
    assert (said["version"], said["owned_by"][:7], len(said["owned_by"])) == ("1�2", "v�[2J��", 100)
