"""What is looked for in an answer: every sign is found where it is planted, and nowhere else."""

from __future__ import annotations

import json
import random

import pytest

from flagrelease.model.v4.chat import DSML, END_TOOL_CALLS, EOS, TOOL_CALLS
from flagrelease.model.v4.dsml import ToolCall
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.model.v4.encoded import Opening
from flagrelease.records.rules import BehaviourRules
from flagrelease.validate.behaviour.prompts import bundled_prompts, prompts_of
from flagrelease.validate.behaviour.signs import (
    LOOP_LENGTH,
    LOOP_TIMES,
    calls_tool,
    is_json_object,
    loops,
    read_completion,
)

CHAT = Opening("content", thinks=False, tools=True)
THINKING = Opening("reasoning_content", thinks=True, tools=True)
STORY = "The keeper climbed the stairs at dusk, wound the clock, and lit the lamp before the first ship came in sight. "


def loops_naively(text: str) -> bool:
    """The definition, tried period by period."""
    tail = text.rstrip()
    for period in range(1, len(tail)):
        length = max(LOOP_TIMES * period, LOOP_LENGTH)
        if length <= len(tail) and all(tail[-1 - n] == tail[-1 - n - period] for n in range(length - period)):
            return True
    return False


@pytest.mark.parametrize(
    "text",
    [STORY * 6, "intro " + "I will think again. " * 30, "x" * 400, STORY + "\n\n".join([STORY.strip()] * 6) + "\n\n"],
)
def test_loops_are_found(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "yes", STORY, STORY * 4, "ha " * 40, "|---" * 12 + "|", ", ".join(str(n) for n in range(1, 121)),
        STORY * 8 + "In the end he found the letter, read it, and answered it with one of his own, at length. " * 2,
    ],
)  # fmt: skip
def test_what_is_no_loop(text: str) -> None:
    assert not loops(text)


def test_loops_agree_with_the_definition_tried_out() -> None:
    rng = random.Random(4)
    found = 0
    for _ in range(300):
        unit = "".join(rng.choices("ab ", k=rng.randint(1, 60)))
        text = "".join(rng.choices("ab ", k=rng.randint(0, 40))) + unit * rng.randint(1, 12)
        text = text[: len(text) - rng.randint(0, 5)] + rng.choice(["", "", "c"])
        assert loops(text) == loops_naively(text), text
        found += loops(text)
    assert 50 < found < 250


CALL = (
    f'\n\n{TOOL_CALLS}\n<{DSML}invoke name="search">\n'
    f'<{DSML}parameter name="query" string="true">heat</{DSML}parameter>\n'
    f"</{DSML}invoke>\n{END_TOOL_CALLS}"
)


def test_completions_are_taken_apart() -> None:
    plain = read_completion("Hello." + EOS, CHAT)
    assert plain is not None
    assert plain.content == "Hello."
    called = read_completion("I look it up." + CALL, CHAT)
    assert called is not None
    assert called.tool_calls == (ToolCall("search", '{"query": "heat"}'),)
    thought = read_completion("hm</think>Hello.", THINKING)
    assert thought is not None
    assert thought.reasoning == "hm"


@pytest.mark.parametrize(
    "text",
    [
        CALL.replace(END_TOOL_CALLS, ""), CALL + " and more", CALL.replace('string="true"', 'string="perhaps"'),
        CALL.replace('string="true"', 'string="false"'), "Hello <｜User｜> you", "Hello <think> you", f"{DSML} here",
        "caf\N{REPLACEMENT CHARACTER}", CALL + CALL, CALL.replace("\n\n", "\n"), CALL.replace(TOOL_CALLS, ""),
        CALL.replace("true", "false").replace("heat", "[" * 2000 + "]" * 2000),
    ],
)  # fmt: skip
def test_broken_formats_are_found(text: str) -> None:
    assert read_completion(text, CHAT) is None


TOOLS = next(prompt for prompt in bundled_prompts() if prompt.id == "tool-many").tools


@pytest.mark.parametrize(
    ("name", "arguments", "valid"),
    [
        ("search", {"query": "x"}, True),
        ("search", {"query": "x", "limit": 3}, True),
        ("search", {"limit": 3}, False),
        ("search", {"query": 7}, False),
        ("search", {"query": "x", "limit": True}, False),
        ("search", {"query": "x", "depth": 1}, False),
        ("convert_currency", {"amount": 80, "source": "USD", "target": "CHF"}, True),
        ("get_weather", {"city": "Oslo", "day": "today"}, True),
        ("get_weather", {"city": "Oslo", "day": "someday"}, False),
        ("add_event", {"title": "a", "start": "b", "minutes": 45, "guests": ["Ada"]}, True),
        ("format_disk", {}, False),
    ],
)
def test_calls_must_follow_a_tool(name: str, arguments: dict[str, object], valid: bool) -> None:
    assert calls_tool([ToolCall(name, json.dumps(arguments))], TOOLS) is valid


@pytest.mark.parametrize("value", ["[" * 2000 + "]" * 2000, "9" * 5000, "1e999", "NaN", '"\\ud83d"'])
def test_values_that_python_cannot_read_are_judged_and_do_not_raise(value: str) -> None:
    # the stage ended in RecursionError or ValueError here, and again at every rerun
    assert not calls_tool([ToolCall("search", f'{{"query": {value}}}')], TOOLS)
    assert is_json_object(f'{{"a": {value}}}') is (value in ("9" * 5000, "1e999"))


def test_no_call_is_no_valid_call_and_one_bad_call_spoils_all() -> None:
    good = ToolCall("search", '{"query": "x"}')
    assert not calls_tool([], TOOLS)
    assert calls_tool([good, good], TOOLS)
    assert not calls_tool([good, ToolCall("search", "{}")], TOOLS)


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ('{"a": [1]}', True), ('```json\n{"a": 1}\n```', True), (' {"a": "\\"}"} \n', True), ("[1]", False),
        ('{"a": 1', False), ('Here: {"a": 1}', False), ("", False), ("{'a': 1}", False),
    ],
)  # fmt: skip
def test_json_objects(text: str, is_json: bool) -> None:
    assert is_json_object(text) is is_json


def test_every_prompt_can_be_asked_in_every_mode() -> None:
    prompts = bundled_prompts()
    assert len({prompt.id for prompt in prompts}) == len(prompts) == 32
    for prompt in prompts:
        assert len({prompt.encode(effort) for effort in efforts_of("0731").by_mode.values()}) == 4
        assert bool(prompt.tools) == (prompt.wish == "tool")
        for tool in prompt.tools:
            assert tool["function"]["name"] in prompt.encode(efforts_of("0731").of("chat")).text
    few = prompts_of(BehaviourRules(prompts=2))
    assert [prompt.wish for prompt in few] == ["text", "text", "tool", "tool", "json", "json"]
