"""Chat encoding against DeepSeek's four golden pairs, and completions parsed back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagrelease.errors import UsageError
from flagrelease.model.v4 import chat
from flagrelease.model.v4.chat import encode_messages
from flagrelease.model.v4.completion import Completion, parse_completion
from flagrelease.model.v4.dsml import ToolCall
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.model.v4.encoded import Opening

GOLDEN = Path(__file__).parent.parent / "golden" / "encoding"
CHAT, THINKING, MAX = (efforts_of("preview").of(mode) for mode in ("chat", "thinking", "max"))
ANSWERED, THOUGHT = Opening("content", thinks=False, tools=True), Opening("reasoning_content", thinks=True, tools=True)
EFFORTS = {1: THINKING, 2: THINKING, 3: THINKING, 4: CHAT}


def golden(case: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    document = json.loads((GOLDEN / f"test_input_{case}.json").read_text(encoding="utf-8"))
    expected = (GOLDEN / f"test_output_{case}.txt").read_text(encoding="utf-8")
    if isinstance(document, list):
        return document, [], expected
    return document["messages"], document["tools"], expected


@pytest.mark.parametrize("case", EFFORTS)
def test_golden_pair_byte_for_byte(case: int) -> None:
    messages, tools, expected = golden(case)
    assert encode_messages(messages, EFFORTS[case], tools, finished=True).text.encode() == expected.encode()


@pytest.mark.parametrize("case", [1, 2, 3])
def test_golden_answers_parse_back_to_their_messages(case: int) -> None:
    # The text between an assistant's opening and its EOS is what the model wrote; the message is what it must give.
    messages, tools, expected = golden(case)
    prompt = encode_messages(messages[:-1], EFFORTS[case], tools).text
    assert expected.startswith(prompt)
    last = messages[-1]
    assert parse_completion(expected[len(prompt) :], THOUGHT) == Completion(last["content"], last["reasoning_content"])


@pytest.mark.parametrize("case", [1, 3])
def test_golden_tool_calls_parse_back(case: int) -> None:
    messages, tools, expected = golden(case)
    turn = next(i for i, message in enumerate(messages) if message.get("tool_calls"))
    prompt = encode_messages(messages[:turn], EFFORTS[case], tools).text
    written = expected[len(prompt) :].split(chat.EOS)[0] + chat.EOS
    function = messages[turn]["tool_calls"][0]["function"]
    assert parse_completion(written, THOUGHT) == Completion(
        "", messages[turn]["reasoning_content"], (ToolCall(function["name"], function["arguments"]),)
    )


def test_prompt_ends_where_the_assistant_continues() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert encode_messages(messages, CHAT).text == "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"
    assert encode_messages(messages, THINKING).text == "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>"
    assert encode_messages(messages, MAX).text.startswith("<｜begin▁of▁sentence｜>Reasoning Effort: Absolute maximum")


def test_tool_results_follow_the_order_of_the_calls() -> None:
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in ("a", "b")]
    text = encode_messages(
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "b", "content": "B"},
            {"role": "tool", "tool_call_id": "a", "content": "A"},
        ],
        CHAT,
    ).text
    assert "<｜User｜><tool_result>A</tool_result>\n\n<tool_result>B</tool_result><｜Assistant｜>" in text


def test_types_of_arguments_survive() -> None:
    arguments = {"text": 'a "quoted"\nline', "n": 3, "on": True, "list": [1, {"x": None}], "empty": ""}
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "Sure.", "tool_calls": [call]}]
    written = encode_messages(messages, CHAT, finished=True).text.split(chat.END_THINK)[1]
    parsed = parse_completion(written, ANSWERED)
    assert parsed.content == "Sure."
    assert [(c.name, json.loads(c.arguments)) for c in parsed.tool_calls] == [("f", arguments)]


def test_reasoning_cut_by_a_limit_is_all_reasoning() -> None:
    assert parse_completion("I was still thin", THOUGHT) == Completion("", "I was still thin")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "wizard", "content": "x"}], "wizard"),
        ([{"content": "x"}], "None"),
        ([{"role": "user", "content": "x", "task": "dance"}], "dance"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "not text"),
    ],
)
def test_bad_messages_are_refused(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        encode_messages(messages, CHAT)
