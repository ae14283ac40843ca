"""litellm on its OpenAI, Anthropic and Responses ways. Arguments: two servers' addresses."""

import asyncio
import json
import sys

import litellm

litellm.suppress_debug_info = True
model, scripted = sys.argv[1:]
CALL = (
    '<say><｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Beijing</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls></say>"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}}
GREET = [{"role": "user", "content": "Hello"}]
ASK = [{"role": "user", "content": CALL}]


def ways(url: str) -> list[dict[str, str]]:
    name = "tiny" if url == model else "scripted"
    return [
        {"model": f"openai/{name}", "api_base": f"{url}/v1", "api_key": "none"},
        {"model": f"hosted_vllm/{name}", "api_base": f"{url}/v1"},
        {"model": f"anthropic/{name}", "api_base": url, "api_key": "none"},
    ]


def chats() -> None:
    for way in ways(model):
        made = litellm.completion(messages=GREET, max_tokens=8, temperature=0, **way)
        chunks = litellm.completion(messages=GREET, max_tokens=8, temperature=0, stream=True, **way)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert said == made.choices[0].message.content, way
        assert made.usage.completion_tokens > 0
        print(" ", way["model"])


def tools() -> None:
    for way in ways(scripted):
        made = litellm.completion(messages=ASK, tools=[TOOL], max_tokens=500, **way)
        (call,) = made.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Beijing"})
        result = {"role": "tool", "tool_call_id": call.id, "content": "22"}
        again = litellm.completion(
            messages=[*ASK, made.choices[0].message.model_dump(), result], tools=[TOOL], max_tokens=500, **way
        )
        assert again.choices[0].message.content == "The tool says 22.", way
        chunks = list(litellm.completion(messages=ASK, tools=[TOOL], max_tokens=500, stream=True, **way))
        whole = litellm.stream_chunk_builder(chunks, messages=ASK)
        assert json.loads(whole.choices[0].message.tool_calls[0].function.arguments) == {"city": "Beijing"}
        print(" ", way["model"])


def thinks() -> None:
    say = [{"role": "user", "content": "<say>Hm.</think>Yes!</say>"}]
    for way in ways(scripted):
        thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "allowed_openai_params": ["thinking"]}
        how = thinking if way["model"].startswith("anthropic/") else {"reasoning_effort": "high"}
        made = litellm.completion(messages=say, max_tokens=2000, **how, **way)
        message = made.choices[0].message
        assert (message.reasoning_content, message.content) == ("Hm.", "Yes!"), (way, message)
        print(" ", way["model"])


def responses() -> None:
    for url, name in ((model, "tiny"), (scripted, "scripted")):
        way = {"model": f"openai/{name}", "api_base": f"{url}/v1", "api_key": "none"}
        made = litellm.responses(input="<say>one</say>", max_output_tokens=8, **way)
        assert made.output[0].content[0].text
        kinds = [
            event.type for event in litellm.responses(input="<say>one</say>", stream=True, max_output_tokens=8, **way)
        ]
        assert str(kinds[-1].value if hasattr(kinds[-1], "value") else kinds[-1]) in (
            "response.completed",
            "response.incomplete",
        )


async def messages() -> None:
    for way in ways(scripted):
        made = await litellm.anthropic.messages.acreate(
            messages=[{"role": "user", "content": "<say>one</say>"}], max_tokens=9, **way
        )
        assert made["content"][0]["text"] == "one", (way, made)
        print(" ", way["model"])


for check in (chats, tools, thinks, responses):
    check()
    print(check.__name__)
asyncio.run(messages())
print("messages")
