"""langchain-openai: chats, streams, bind_tools, with_structured_output, Responses. Arguments: two addresses."""

import sys
import warnings
from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

CALL = (
    '<say><｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Beijing</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls></say>"
)


class Person(BaseModel):
    """Who somebody is."""

    name: Literal["Ada", "Grace"]  # the small model would write a free text up to any limit
    known: bool


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"22 in {city}"


def client(which: int, **changes: Any) -> ChatOpenAI:
    name = ("tiny", "scripted")[which]
    return ChatOpenAI(base_url=f"{sys.argv[1 + which]}/v1", api_key="none", model=name, max_retries=0, **changes)


def chats() -> None:
    chat = client(0, max_tokens=8, temperature=0)
    made = chat.invoke("Hello")
    assert "".join(chunk.content for chunk in chat.stream("Hello")) == made.content
    assert made.usage_metadata["output_tokens"] > 0
    assert [each.content for each in chat.batch(["Hello", "Hello"])] == [made.content] * 2


def tools() -> None:
    chat = client(1).bind_tools([get_weather])
    made = chat.invoke(CALL)
    assert [(call["name"], call["args"]) for call in made.tool_calls] == [("get_weather", {"city": "Beijing"})]
    result = ToolMessage("22", tool_call_id=made.tool_calls[0]["id"])
    assert chat.invoke([HumanMessage(CALL), made, result]).content == "The tool says 22."
    whole = None
    for chunk in chat.stream(CALL):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == {"city": "Beijing"}


def responses() -> None:
    chat = client(1, use_responses_api=True, reasoning={"effort": "high", "summary": "auto"})
    made = chat.invoke("<say>Hm.</think>Yes!</say>")
    assert made.text == "Yes!"
    bound = client(1, use_responses_api=True, output_version="responses/v1").bind_tools([get_weather])
    called = bound.invoke(CALL)
    assert called.tool_calls[0]["args"] == {"city": "Beijing"}
    result = ToolMessage("22", tool_call_id=called.tool_calls[0]["id"])
    assert bound.invoke([HumanMessage(CALL), called, result]).text == "The tool says 22."
    assert "".join(chunk.text for chunk in client(1, use_responses_api=True).stream("<say>one two</say>")) == "one two"


def structured() -> None:
    for method in ("json_mode", "json_schema", "function_calling"):
        chat = client(0, max_tokens=900).with_structured_output(Person, method=method, include_raw=True)
        answer = chat.invoke("Who is it? Answer in JSON.")
        if method != "json_mode":  # JSON of any form: the small model does not know the schema
            assert isinstance(answer["parsed"], Person), answer
        print("structured", method)


warnings.simplefilter("error", DeprecationWarning)
for check in (chats, tools, responses, structured):
    check()
    print(check.__name__)
