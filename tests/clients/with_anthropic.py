"""Anthropic's own client: messages, streams, tools, thinking, count_tokens. Arguments: two servers' addresses."""

import sys

import anthropic

model, scripted = (anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) for url in sys.argv[1:])
CALL = (
    '<say>Let me look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Beijing</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls></say>"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}
ASK = [{"role": "user", "content": CALL}]
GREET = [{"role": "user", "content": "Hello"}]


def messages() -> None:
    made = model.messages.create(model="tiny", messages=GREET, max_tokens=8, system="Be kind.")
    assert made.content[0].type == "text"
    assert made.stop_reason in ("end_turn", "max_tokens")
    asked = {"model": "tiny", "messages": GREET, "system": "Be kind."}
    assert model.messages.count_tokens(**asked).input_tokens == made.usage.input_tokens
    with model.messages.stream(max_tokens=8, **asked) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].text == said
    assert final.usage.output_tokens > 0
    assert final.usage.input_tokens == made.usage.input_tokens


def stops() -> None:
    made = scripted.messages.create(
        model="scripted",
        messages=[{"role": "user", "content": "<say>one</say>"}],
        max_tokens=100,
        stop_sequences=["END"],
    )
    assert made.stop_reason == "end_turn"
    begun = model.messages.create(
        model="tiny", messages=[*GREET, {"role": "assistant", "content": "Ledger: "}], max_tokens=4
    )
    assert begun.stop_reason in ("max_tokens", "end_turn")


def tools() -> None:
    made = scripted.messages.create(model="scripted", messages=ASK, tools=[TOOL], max_tokens=500)
    text, use = made.content
    assert (text.text, use.name, use.input) == ("Let me look.", "get_weather", {"city": "Beijing", "days": 3})
    assert made.stop_reason == "tool_use"
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "22"}]}
    again = scripted.messages.create(
        model="scripted", messages=[*ASK, {"role": "assistant", "content": made.content}, result], tools=[TOOL],
        max_tokens=500,
    )  # fmt: skip
    assert again.content[0].text == "The tool says 22."
    with scripted.messages.stream(model="scripted", messages=ASK, tools=[TOOL], max_tokens=500) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(parts) > 2
    assert final.content[1].input == {"city": "Beijing", "days": 3}
    assert final.stop_reason == "tool_use"


def thinking() -> None:
    say = [{"role": "user", "content": "<say>Hm, let me see.</think>Yes!</say>"}]
    thinks = {"type": "enabled", "budget_tokens": 1024}
    with scripted.messages.stream(model="scripted", messages=say, thinking=thinks, max_tokens=2000) as stream:
        thought = "".join(event.thinking for event in stream if event.type == "thinking")
        final = stream.get_final_message()
    assert thought == final.content[0].thinking == "Hm, let me see."
    assert final.content[1].text == "Yes!"
    assert final.usage.output_tokens_details.thinking_tokens > 0


def refusal(kind: type[anthropic.APIStatusError], **asked: object) -> str:
    """The message of a request that is refused."""
    try:
        model.messages.create(max_tokens=5, **asked)
    except kind as error:
        message: str = error.body["error"]["message"]
        return message
    raise AssertionError("it was not refused")


def refusals() -> None:
    assert refusal(anthropic.NotFoundError, model="other", messages=GREET)
    assert refusal(anthropic.BadRequestError, model="tiny", messages=[]).startswith("messages: ")


def models() -> None:
    assert [(each.id, each.type, each.display_name) for each in model.models.list()] == [("tiny", "model", "tiny")]
    assert model.models.retrieve("tiny").id == "tiny"


def constrained() -> None:
    must = model.messages.create(
        model="tiny", messages=GREET, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"}, max_tokens=400
    )
    assert must.content[-1].name == "get_weather"


for check in (messages, stops, tools, thinking, refusals, models, constrained):
    check()
    print(check.__name__)
