"""What is looked for in an answer: loops, a broken chat format, a missing tool call, missing JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flagrelease.model.v4.chat import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    REMINDER,
    THINK,
    USER,
)
from flagrelease.model.v4.completion import Completion, parse_completion
from flagrelease.model.v4.dsml import ToolCall
from flagrelease.model.v4.encoded import Opening
from flagrelease.model.v4.json_text import is_json, read_object
from flagrelease.validate.behaviour.prompts import Prompt

LOOP_TAIL = 4096  # characters at the end in which a loop is looked for
LOOP_TIMES = 5
LOOP_LENGTH = 160  # characters that the repeats must fill: a table's rule or "ha ha ha" is not a loop

_MARKERS = (BOS, EOS, USER, ASSISTANT, REMINDER, THINK, END_THINK, DSML)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,),
}  # fmt: skip


def loops(text: str) -> bool:
    """Whether `text` ends in a passage `LOOP_TIMES` or more times, over `LOOP_LENGTH` characters or more."""
    tail = text.rstrip()[: -LOOP_TAIL - 1 : -1]
    return any(
        period + same >= max(LOOP_TIMES * period, LOOP_LENGTH) for period, same in enumerate(_self_overlap(tail))
    )


def _self_overlap(text: str) -> list[int]:
    """For each place, how many characters from there on equal those at the beginning (the Z function); 0 at place 0."""
    overlap = [0] * len(text)
    left = right = 0
    for place in range(1, len(text)):
        same = min(overlap[place - left], right - place) if place < right else 0
        while place + same < len(text) and text[same] == text[place + same]:
            same += 1
        overlap[place] = same
        if place + same > right:
            left, right = place, place + same
    return overlap


def read_completion(text: str, opening: Opening) -> Completion | None:
    """What the model wrote, taken apart; None if it breaks the chat format.

    Broken are tool calls that are not of the taught form, even where they can be understood; markers of the format
    where text should be; and bytes that are no characters.
    """
    completion = parse_completion(text, opening)
    if not completion.as_taught:
        return None
    shown = completion.content + (completion.reasoning or "")
    return None if any(marker in shown for marker in _MARKERS) or "�" in shown else completion


def is_clean(text: str, calls: Sequence[ToolCall]) -> bool:
    """Whether an answer that a server took apart keeps the format, as far as that can be seen then.

    No marker of the format in its text, no bytes that are no characters, and an object as arguments of every call.
    """
    marked = any(marker in text for marker in _MARKERS) or "�" in text
    return not marked and all(read_object(call.arguments) is not None for call in calls)


def grants(content: str, calls: Sequence[ToolCall], prompt: Prompt) -> bool:
    """Whether an answer has what its prompt asks for: text, a valid tool call, a JSON object."""
    if prompt.wish == "tool":
        return calls_tool(calls, prompt.tools)
    return is_json_object(content) if prompt.wish == "json" else bool(content.strip())


def calls_tool(calls: Sequence[ToolCall], tools: Sequence[dict[str, Any]]) -> bool:
    """Whether there is a call, and every one names a tool of `tools` and follows its schema."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    return bool(calls) and all(
        call.name in schemas
        and (arguments := read_object(call.arguments)) is not None
        and _follows(arguments, schemas[call.name])
        for call in calls
    )


def _follows(arguments: dict[str, Any], schema: dict[str, Any]) -> bool:
    properties = schema["properties"]
    return set(schema["required"]) <= arguments.keys() <= properties.keys() and all(
        _is(value, properties[key]) for key, value in arguments.items()
    )


def _is(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, bool) and schema["type"] != "boolean":
        return False
    return isinstance(value, _TYPES[schema["type"]]) and value in schema.get("enum", [value])


def is_json_object(content: str) -> bool:
    """Whether the whole content is one JSON object, bare or in a code fence."""
    text = content.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removeprefix("```json").removeprefix("```").removesuffix("```")
    return text.lstrip().startswith("{") and is_json(text)
