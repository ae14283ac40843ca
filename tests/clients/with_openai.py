"""OpenAI's own client: models, completions, chats, responses, streams, tools, parse. Arguments: two addresses."""

import json
import sys
from collections.abc import Callable
from typing import Literal

import openai
from pydantic import BaseModel

model, scripted = (openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) for url in sys.argv[1:])
CALL = (
    '<say>Let me look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Beijing</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls></say>"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
FLAT = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}
ASK = [{"role": "user", "content": CALL}]
GREET = [{"role": "user", "content": "Hello"}]


class Person(BaseModel):
    name: Literal["Ada", "Grace"]  # the small model would write a free text up to any limit
    known: bool


def models() -> None:
    assert [each.id for each in model.models.list()] == ["tiny"]
    assert model.models.retrieve("tiny").object == "model"


def completions() -> None:
    made = model.completions.create(model="tiny", prompt="Hello", max_tokens=5, temperature=0, logprobs=2, echo=True)
    assert made.choices[0].text.startswith("Hello")
    streamed = model.completions.create(
        model="tiny", prompt=["Hello", "Ledger"], max_tokens=5, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(streamed)
    assert chunks[-1].usage.completion_tokens > 0
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def chats() -> None:
    made = model.chat.completions.create(model="tiny", messages=GREET, max_tokens=8, temperature=0, logprobs=True)
    chunks = list(model.chat.completions.create(model="tiny", messages=GREET, max_tokens=8, temperature=0, stream=True))
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == made.choices[0].message.content
    assert b"".join(bytes(token.bytes) for token in made.choices[0].logprobs.content).decode() == said
    with model.chat.completions.stream(model="tiny", messages=GREET, max_tokens=8, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == said


def tools() -> None:
    made = scripted.chat.completions.create(model="scripted", messages=ASK, tools=[TOOL])
    call = made.choices[0].message.tool_calls[0]
    assert (made.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Beijing", "days": 3}
    result = {"role": "tool", "tool_call_id": call.id, "content": "22"}
    again = scripted.chat.completions.create(
        model="scripted", messages=[*ASK, made.choices[0].message, result], tools=[TOOL]
    )
    assert again.choices[0].message.content == "The tool says 22."
    with scripted.chat.completions.stream(model="scripted", messages=ASK, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert kinds.count("tool_calls.function.arguments.delta") > 2
    assert json.loads(final.arguments) == {"city": "Beijing", "days": 3}


def responses() -> None:
    made = model.responses.create(model="tiny", input="Hello", max_output_tokens=8, temperature=0)
    with model.responses.stream(model="tiny", input="Hello", max_output_tokens=8, temperature=0) as stream:
        numbers = [event.sequence_number for event in stream]
    assert numbers == list(range(len(numbers)))
    assert made.output_text
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens


def responses_with_tools() -> None:
    made = scripted.responses.create(model="scripted", input=CALL, tools=[FLAT])
    call = made.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call", "get_weather", {"city": "Beijing", "days": 3},
    )  # fmt: skip
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "22"}
    again = scripted.responses.create(model="scripted", input=[*ASK, *made.output, output], tools=[FLAT])
    assert again.output_text == "The tool says 22."
    with scripted.responses.stream(model="scripted", input=CALL, tools=[FLAT]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response().output[-1]
    assert kinds.count("response.function_call_arguments.delta") > 2
    assert json.loads(final.arguments) == {"city": "Beijing", "days": 3}


def reasoning() -> None:
    say = "<say>Hm, let me see.</think>Yes!</say>"
    made = scripted.responses.create(model="scripted", input=say, reasoning={"effort": "high", "summary": "auto"})
    assert (made.output[0].content[0].text, made.output_text) == ("Hm, let me see.", "Yes!")
    chat = scripted.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": say}], reasoning_effort="high"
    )
    assert chat.choices[0].message.reasoning_content == "Hm, let me see."


def parse() -> None:
    schema = model.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "Who?"}], response_format=Person, max_tokens=400
    )
    assert isinstance(schema.choices[0].message.parsed, Person)
    response = model.responses.parse(model="tiny", input="Who?", text_format=Person, max_output_tokens=400)
    assert isinstance(response.output_parsed, Person)


def refusal(kind: type[openai.APIStatusError], call: Callable[[], object]) -> str:
    """The message of a call that is refused."""
    try:
        call()
    except kind as error:
        message: str = error.body["message"]
        return message
    raise AssertionError("it was not refused")


def refusals() -> None:
    assert refusal(openai.NotFoundError, lambda: model.chat.completions.create(model="other", messages=GREET))
    assert refusal(openai.BadRequestError, lambda: model.chat.completions.create(model="tiny", messages=[]))
    kept = {"model": "tiny", "input": "x", "previous_response_id": "r"}
    assert "previous_response_id" in refusal(openai.BadRequestError, lambda: model.responses.create(**kept))


for check in (models, completions, chats, tools, responses, responses_with_tools, reasoning, refusals, parse):
    check()
    print(check.__name__)
