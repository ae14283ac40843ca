"""llm (Simon Willison's): prompts, streams, tools, schemas of an OpenAI-compatible model. Arguments: two addresses."""

import json
import sys
from pathlib import Path

import llm

CALL = (
    '<say><｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">Beijing</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls></say>"
)


def weather(city: str) -> str:
    """The weather of a city."""
    return f"22 in {city}"


folder = Path(llm.user_dir())
folder.mkdir(parents=True, exist_ok=True)
models = [
    {"model_id": name, "model_name": name, "api_base": f"{url}/v1", "supports_tools": True, "supports_schema": True}
    for name, url in zip(("tiny", "scripted"), sys.argv[1:], strict=True)
]
(folder / "extra-openai-models.yaml").write_text(json.dumps(models))


def prompts() -> None:
    model = llm.get_model("tiny")
    model.key = "none"
    whole = model.prompt("Hello", max_tokens=8, temperature=0, stream=False).text()
    assert "".join(model.prompt("Hello", max_tokens=8, temperature=0)) == whole
    conversation = model.conversation()
    conversation.prompt("Hello", max_tokens=8, system="Be kind.").text()
    assert conversation.prompt("And?", max_tokens=8).usage().output > 0


def tools() -> None:
    model = llm.get_model("scripted")
    model.key = "none"
    assert model.chain(CALL, tools=[weather]).text() == "The tool says 22 in Beijing."
    assert model.chain(CALL, tools=[weather], stream=False).text() == "The tool says 22 in Beijing."


def schemas() -> None:
    model = llm.get_model("tiny")
    model.key = "none"
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
        "additionalProperties": False,
    }
    assert isinstance(json.loads(model.prompt("How old?", schema=schema, max_tokens=400).text())["age"], int)


for check in (prompts, tools, schemas):
    check()
    print(check.__name__)
