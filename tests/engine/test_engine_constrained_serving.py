"""Constrained answers of a server whose model knows no words: what it says by chance must fulfil what was asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import deepseek_recipe as recipe
import jsonschema
import openai
import pydantic
import pytest
import torch
from engine_checkpoint import random_tokens
from on_loopback import on_loopback
from small_tokenizer import SPECIAL, write_tokenizer
from tokenizers import pre_tokenizers

from flagrelease import engine
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler, generate_all
from flagrelease.engine.constraints.compiler import Compiler
from flagrelease.engine.constraints.wanted import ChosenAnswer, JsonAnswer, RegexAnswer
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.constrained import constrained
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.requests.refusals import ParameterError
from flagrelease.engine.serve.server import Served, make_app
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.model.v4.completion import Completion, parse_completion
from flagrelease.model.v4.dsml import ToolCall
from flagrelease.model.v4.efforts import efforts_of

NAME, CONTEXT = "small-v4", 4000
POINT = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["near", "far"]},
        "label": {"type": "string", "maxLength": 2},
        "at": {"type": "array", "items": {"type": "boolean"}, "maxItems": 1},
    },
    "required": ["kind", "label", "at"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "point", "schema": POINT, "strict": True}}
MESSAGES: Any = [{"role": "user", "content": "x"}]
CLOSES, MARK = (str(SPECIAL.index(token)) for token in ("</think>", "｜DSML｜"))
TOKEN = {text: str(n + len(SPECIAL)) for n, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def function(name: str, parameters: dict[str, Any], **more: Any) -> Any:
    return {
        "type": "function",
        "function": {"name": name, "description": "does", "parameters": parameters, **more},
    }


TOOLS = [function("mark", POINT), function("stop", {"type": "object", "properties": {}})]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def model(quick_release: Path) -> Model:
    return engine.load(quick_release, "bf16", torch.float32, mtp=True)


@pytest.fixture(scope="module")
def served(model: Model, tokenizer: Tokenizer) -> Served:
    service = Service(Scheduler(Runner(model, 4, CONTEXT, speculate=True), tokenizer), queue_limit=8)
    return Served(service, tokenizer, NAME, "chat", efforts_of("preview"))


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with (
        on_loopback(make_app(served), served.service) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    defaults: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 300, "seed": 1}
    return client.chat.completions.create(**{**defaults, **more})


def test_a_schema_holds_for_every_choice_and_in_a_stream(client: openai.OpenAI) -> None:
    whole = ask(client, response_format=FORMAT, n=2)
    contents = [choice.message.content for choice in whole.choices]
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.message.content), POINT)
        assert choice.finish_reason == "stop"
    assert len(set(contents)) > 1
    streamed = ["", ""]
    for chunk in ask(client, response_format=FORMAT, n=2, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == contents


def test_the_reasoning_is_free(client: openai.OpenAI) -> None:
    # the end token is likely too: without the rule that the answer must begin, most would end inside the thought
    bias = {CLOSES: 4.0, "1": 6.0}
    for seed in range(1):
        (choice,) = ask(
            client, response_format=FORMAT, seed=seed, logit_bias=bias, extra_body={"thinking": {"type": "enabled"}}
        ).choices
        jsonschema.validate(json.loads(choice.message.content), POINT)
        assert choice.message.reasoning_content


def test_a_limit_cuts_the_answer(client: openai.OpenAI) -> None:
    (choice,) = ask(client, response_format=FORMAT, max_tokens=5).choices
    assert (choice.finish_reason, len(choice.message.content)) == ("length", 5)


def test_any_object(client: openai.OpenAI) -> None:
    bias = {TOKEN[mark]: 6.0 for mark in '"}]'}
    for choice in ask(client, response_format={"type": "json_object"}, n=3, logit_bias=bias).choices:
        assert choice.finish_reason == "stop"
        assert isinstance(json.loads(choice.message.content), dict)


def said(served: Served, body: dict[str, Any], count: int, **sampling: Any) -> list[Completion]:
    """What the model says by chance to a short prompt, constrained as the request's answer is.

    The prompts of the requests themselves are thousands of tokens long, in a tokenizer without words.
    """
    request = ChatRequest.model_validate({"model": NAME, "messages": MESSAGES, **body})
    opening = request.encoded(served.efforts.of(request.mode("chat"))).opening
    constraint = asyncio.run(constrained(served, request, opening.part))
    scheduler = Scheduler(Runner(served.service._scheduler.runner.model, 4, 1000, speculate=True), served.tokenizer)
    how = Sampling(max_tokens=900, seed=3, constraint=constraint, **sampling)
    prompts = [random_tokens(5, seed=n, vocabulary=263) for n in range(count)]
    return [parse_completion(each.text, opening) for each in generate_all(scheduler, prompts, how)]


def arguments(call: ToolCall) -> Any:
    value = json.loads(call.arguments)
    jsonschema.validate(value, POINT if call.name == "mark" else {"const": {}})
    return value


SLASH = ((int(TOKEN["/"]), 4.0),)  # blocks of calls end soon


@pytest.mark.parametrize("thinks", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_required_calls(served: Served, thinks: bool) -> None:
    body = {"tools": TOOLS, "tool_choice": "required", "thinking": {"type": "enabled" if thinks else "disabled"}}
    bias = (*SLASH, (int(CLOSES), 6.0)) if thinks else SLASH
    found = said(served, body, 4, logit_bias=bias)
    for each in found:
        assert each.as_taught
        assert (each.content, bool(each.reasoning)) == ("", thinks)
        assert each.tool_calls
        assert all(arguments(call) is not None for call in each.tool_calls)
    assert {call.name for each in found for call in each.tool_calls} <= {"mark", "stop"}


def test_one_call_of_one_function(served: Served) -> None:
    named = {"type": "function", "function": {"name": "mark"}}
    for each in said(served, {"tools": TOOLS, "tool_choice": named}, 2):
        assert [call.name for call in each.tool_calls] == ["mark"]
        arguments(each.tool_calls[0])
    one = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    assert [len(each.tool_calls) for each in said(served, one, 3)] == [1] * 3


def test_a_strict_function_where_the_model_decides(served: Served) -> None:
    body = {"tools": [function("mark", POINT, strict=True)], "parallel_tool_calls": False}  # so that a block ends
    called = said(served, body, 2, logit_bias=((int(MARK), 12.0), (int(TOKEN["<"]), 12.0), *SLASH))
    assert any(each.tool_calls for each in called)
    assert all(arguments(call) is not None for each in called for call in each.tool_calls)
    free = said(served, body, 2, logit_bias=((int(MARK), -100.0), (1, 4.0)))
    assert not any(each.tool_calls for each in free)


def test_calls_or_a_schema_where_the_model_decides(served: Served) -> None:
    found = said(served, {"tools": TOOLS, "response_format": FORMAT, "parallel_tool_calls": False}, 4)
    for each in found:
        assert each.tool_calls or jsonschema.validate(json.loads(each.content), POINT) is None


def test_tools_of_a_message_count_too(served: Served) -> None:
    # strict was taken there without being enforced, and a block could not have called them
    system = {"role": "system", "content": "s", "tools": [function("mark", POINT, strict=True)]}
    body = {"messages": [system, *MESSAGES], "parallel_tool_calls": False}
    called = said(served, body, 2, logit_bias=((int(MARK), 12.0), (int(TOKEN["<"]), 12.0)))
    assert any(each.tool_calls for each in called)
    assert all(arguments(call) is not None for each in called for call in each.tool_calls)
    wrong = function("f", {"type": "object", "properties": {"a": {"uniqueItems": True}}}, strict=True)
    with pytest.raises(ParameterError, match=r"messages\[0\]\.tools\[0\].*uniqueItems"):
        said(served, {"messages": [{**system, "tools": [wrong]}, *MESSAGES]}, 1)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "mark"}}])
def test_a_call_of_a_messages_tool_can_be_required(served: Served, choice: Any) -> None:
    # it was refused as "not among the tools"
    system = {"role": "system", "content": "s", "tools": [function("mark", POINT)]}
    for each in said(served, {"messages": [system, *MESSAGES], "tool_choice": choice}, 1):
        assert [call.name for call in each.tool_calls][:1] == ["mark"]
        assert arguments(each.tool_calls[0]) is not None
    other = {"tool_choice": {"type": "function", "function": {"name": "other"}}}
    with pytest.raises(ParameterError, match="not among the tools"):
        said(served, {"messages": [system, *MESSAGES], **other}, 1)


def test_without_a_wish_nothing_is_constrained(served: Served) -> None:
    for body in ({}, {"tools": TOOLS}, {"response_format": {"type": "text"}}, {"tools": TOOLS, "tool_choice": "none"}):
        request = ChatRequest.model_validate({"model": NAME, "messages": MESSAGES, **body})
        assert asyncio.run(constrained(served, request, "content")) is None


def test_a_required_call_over_http(client: openai.OpenAI) -> None:
    tools, named = [function("stop", {"type": "object", "properties": {}})], {"name": "stop"}
    choice: Any = {"type": "function", "function": named}
    (whole,) = ask(client, tools=tools, tool_choice=choice).choices
    assert whole.finish_reason == "tool_calls"
    assert [(call.function.name, call.function.arguments) for call in whole.message.tool_calls] == [("stop", "{}")]


VLLM = [
    ({"guided_json": POINT}, lambda text: jsonschema.validate(json.loads(text), POINT) is None),
    ({"guided_json": json.dumps(POINT)}, lambda text: jsonschema.validate(json.loads(text), POINT) is None),
    ({"guided_regex": "[ab]{3}(c|d)"}, lambda text: len(text) == 4),
    ({"guided_choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
    ({"structured_outputs": {"json": POINT}}, lambda text: jsonschema.validate(json.loads(text), POINT) is None),
    ({"structured_outputs": {"regex": "x{2}"}}, lambda text: text == "xx"),
    ({"structured_outputs": {"choice": ["maybe"]}}, lambda text: text == "maybe"),
    ({"response_format": FORMAT}, lambda text: jsonschema.validate(json.loads(text), POINT) is None),
]


@pytest.mark.parametrize(("body", "holds"), VLLM, ids=[str(body)[:40] for body, _ in VLLM])
def test_vllms_parameters_at_completions(client: openai.OpenAI, body: dict[str, Any], holds: Any) -> None:
    answer = client.completions.create(model=NAME, prompt=["a", "b"], n=2, max_tokens=300, seed=5, extra_body=body)
    assert len(answer.choices) == 4
    for choice in answer.choices:
        assert holds(choice.text)
        assert choice.finish_reason == "stop"


def test_openais_own_models_of_answers_are_parsed(client: openai.OpenAI) -> None:
    class Kind(str, Enum):
        near = "near"
        far = "far"

    class Spot(pydantic.BaseModel):
        kind: Kind
        label: str | None = pydantic.Field(max_length=3)

    class Route(pydantic.BaseModel):
        spots: list[Spot] = pydantic.Field(max_length=2)

    parse: Any = client.chat.completions.parse
    answer = parse(model=NAME, messages=MESSAGES, response_format=Route, max_tokens=400, seed=2)
    assert isinstance(answer.choices[0].message.parsed, Route)
    tools = [openai.pydantic_function_tool(Spot)]
    answer = parse(
        model=NAME, messages=MESSAGES, tools=tools, tool_choice="required", seed=2, parallel_tool_calls=False
    )
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Spot)


REFUSED = [
    ({"response_format": {"type": "xml"}}, "response_format", "type is one of"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
        "response_format",
        "not",
    ),
    ({"response_format": FORMAT, "guided_regex": "x"}, "guided_regex", "both say"),
    ({"response_format": FORMAT, "ignore_eos": True}, "ignore_eos", "response_format"),
    ({"response_format": FORMAT, "allowed_token_ids": [4]}, "allowed_token_ids", "response_format"),
    (
        {"response_format": FORMAT, "messages": [*MESSAGES, {"role": "assistant", "content": "{", "prefix": True}]},
        "response_format",
        "continued",
    ),
    ({"guided_json": "{"}, "guided_json", "not JSON"),
    ({"guided_json": "3"}, "guided_json", "no JSON schema"),
    ({"guided_grammar": "root ::= x"}, "guided_grammar", "not supported"),
    ({"guided_choice": []}, "guided_choice", "choices"),
    ({"guided_choice": ["x"], "tools": TOOLS, "parallel_tool_calls": False}, "guided_choice", "tools"),
    (
        {"structured_outputs": {"regex": "x", "whitespace_pattern": "x"}},
        "structured_outputs.whitespace_pattern",
        "null",
    ),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "not supported"),
    ({"tool_choice": "required"}, "tool_choice", "not among the tools"),
    ({"tool_choice": "must", "tools": TOOLS}, "tool_choice", "required"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": TOOLS},
        "tool_choice",
        "not among the tools",
    ),
    ({"tools": [function("f", {"type": "object", "not": {}}, strict=True)]}, "tools", "not cannot be enforced"),
]


@pytest.mark.parametrize(("body", "param", "said"), REFUSED, ids=[f"{p}: {s}" for _, p, s in REFUSED])
def test_what_contradicts_or_cannot_be_enforced_is_refused(
    client: openai.OpenAI, body: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=4, extra_body=body)
    assert refused.value.param == param


def test_a_server_without_the_library_says_what_installs_it(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(openai.BadRequestError, match=r"needs llguidance.*pip install '\.\[constraints\]'"):
        ask(client, response_format=FORMAT)
    ask(client, max_tokens=2)


def test_tokens_are_the_same_with_and_without_drafts(model: Model, tokenizer: Tokenizer) -> None:
    constraint = asyncio.run(Compiler(tokenizer).compile(JsonAnswer(POINT), "reasoning_content"))
    prompt, bias = random_tokens(20, vocabulary=263), ((int(CLOSES), 5.0),)
    prompts = [prompt, prompt[:7]]
    for how in (Sampling(0, logit_bias=((int(CLOSES), 50.0),)), Sampling(1.0, seed=4, logit_bias=bias)):
        constrained = Sampling(
            how.temperature, seed=how.seed, max_tokens=60, logit_bias=how.logit_bias, constraint=constraint, logprobs=0
        )
        answers = []
        for speculate in (False, True):
            scheduler = Scheduler(Runner(model, 2, 200, speculate=speculate), tokenizer)
            answers.append(generate_all(scheduler, prompts, constrained))
        for one, other in zip(*answers, strict=True):
            assert [score.token for score in one.scores] == [score.token for score in other.scores]
        assert sum(each.accepted for each in answers[1]) > 0


def test_a_neighbour_of_a_constrained_answer_is_not_changed(model: Model, tokenizer: Tokenizer) -> None:
    constraint = asyncio.run(Compiler(tokenizer).compile(ChosenAnswer(("yes", "no")), "content"))
    prompt, plain = random_tokens(20, vocabulary=263), Sampling(0, max_tokens=12)
    (alone,) = generate_all(Scheduler(Runner(model, 2, 100), tokenizer), [prompt], plain)
    scheduler = Scheduler(Runner(model, 2, 100), tokenizer)
    beside = scheduler.submit(prompt, plain)
    # it may not end before 10 tokens, but has none that it could say: the constraint counts more
    bound = scheduler.submit(prompt, Sampling(0, min_tokens=10, max_tokens=12, constraint=constraint))
    texts = {beside: "", bound: ""}
    while scheduler.busy:
        for event in scheduler.step():
            texts[event.key] += event.text
    assert texts[beside] == alone.text
    assert texts[bound] in ("yes", "no")


@pytest.mark.parametrize("speculate", [False, True])
def test_an_answer_whose_grammar_takes_too_much_is_cut(model: Model, tokenizer: Tokenizer, speculate: bool) -> None:
    # the library gives this one up after some letters; the answer is not complete, so it does not end with "stop"
    constraint = asyncio.run(Compiler(tokenizer).compile(RegexAnswer("((a{1,100}){1,100}){1,20}"), "content"))
    how = Sampling(1.0, seed=1, max_tokens=60, constraint=constraint, logit_bias=((1, -100.0),))
    scheduler = Scheduler(Runner(model, 1, 100, speculate=speculate), tokenizer)
    (answer,) = generate_all(scheduler, [random_tokens(5, vocabulary=263)], how)
    assert answer.generated < 60
    assert (answer.finish, answer.text) == ("length", "a" * (answer.generated - 1))


def rendered(**body: Any) -> tuple[str, str]:
    """The prompt as DeepSeek's own interface makes it, and ours."""
    messages = [{"role": "system", "content": "sys"}, {"role": "user", "content": "as json"}]
    whole = {"model": "DeepSeek-V4-Pro", "messages": messages, "thinking": {"type": "disabled"}, **body}
    theirs = recipe.ChatCompletionRequest(whole).convert(recipe.ConversionOptions()).conversation
    request = ChatRequest.model_validate(whole)
    ours = request.encoded(efforts_of("preview").of(request.mode("chat"))).text
    return recipe.DeepseekV4Encoding().render_conversation(theirs).prompt, ours


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": POINT}}},
        {"response_format": {"type": "json_object"}, "tools": TOOLS},
        {"response_format": {"type": "json_object"}, "messages": [{"role": "user", "content": "json"}]},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "stop"}}},
        {"tools": TOOLS, "tool_choice": "required"},
    ],
)
def test_the_model_is_told_what_deepseeks_interface_tells_it(body: dict[str, Any]) -> None:
    theirs, ours = rendered(**body)
    # where a call is required DeepSeek begins the block for the model; ours is begun by the constraint
    assert theirs.removesuffix("\n\n<｜DSML｜tool_calls>\n") == ours
