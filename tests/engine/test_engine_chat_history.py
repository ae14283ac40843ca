"""The table of histories in docs/chat.md: what we make of each, and what DeepSeek's package does.

The column of vLLM was made by running tokenizers/deepseek_v4_encoding.py of vLLM 0.33.0, which is not installed here.
"""

from __future__ import annotations

from typing import Any

import deepseek_recipe as recipe
import pytest

from flagrelease.model.v4.chat import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, Message, encode_messages
from flagrelease.model.v4.efforts import efforts_of

EFFORTS = efforts_of("0731")
REFUSED = "refused"


SIGNS = [
    (BOS, "^"), (EOS, "$"), (USER, "U:"), (ASSISTANT, "A:"), (END_THINK, "/"), (THINK, "?"),
    ("\n\n<｜DSML｜tool_calls>\n", ""), ("</｜DSML｜tool_calls>", ""), ('<｜DSML｜invoke name="', "("),
    ("</｜DSML｜invoke>\n", ")"), ('">\n', ""), ("<tool_result>", "["), ("</tool_result>", "]"), ("\n\n", "_"),
]  # fmt: skip


def said(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def calls(*ids: str, arguments: str = "{}") -> Message:
    made = [{"id": each, "type": "function", "function": {"name": each, "arguments": arguments}} for each in ids]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(of: str, content: str) -> Message:
    return {"role": "tool", "tool_call_id": of, "content": content}


def short(prompt: str) -> str:
    """A prompt in one line: ^ begins, $ ends a message, U and A speak; a call is its name, a result its text in []."""
    for text, sign in SIGNS:
        prompt = prompt.replace(text, sign)
    return prompt


def theirs(messages: list[Message]) -> str:
    body = {"model": "DeepSeek-V4-Pro", "messages": messages, "thinking": {"type": "disabled"}}
    try:
        conversation = recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions()).conversation
    except (recipe.ConversionError, ValueError):
        return REFUSED
    return short(recipe.DeepseekV4Encoding().render_conversation(conversation).prompt)


ASKED, ANSWERED = said("user", "u"), said("assistant", "a")
# history: (messages, ours, the package's)
HISTORIES: dict[str, tuple[list[Message], str, str]] = {
    "a system message later on": (
        [ASKED, ANSWERED, said("system", "s"), said("user", "v")], "^U:uA:/a$sU:vA:/", "^sU:uA:/a$U:vA:/",
    ),
    "two system messages": ([said("system", "s"), said("system", "t"), ASKED], "^stU:uA:/", "^s_tU:uA:/"),
    "a system message at the end": ([ASKED, ANSWERED, said("system", "s")], "^U:uA:/a$sA:/", "^sU:uA:/a$A:/"),
    "a result without a call": ([ASKED, result("x", "r")], "^U:u_[r]A:/", REFUSED),
    "a result of an unknown call": (
        [ASKED, calls("a", "b"), result("x", "rx"), result("b", "rb")], "^U:uA:/(a)(b)$U:[rx]_[rb]A:/", REFUSED,
    ),
    "a result of an earlier round": (
        [ASKED, calls("a"), result("a", "ra"), calls("b"), result("b", "rb"), result("a", "again")],
        "^U:uA:/(a)$U:[ra]A:/(b)$U:[rb]_[again]A:/", REFUSED,
    ),
    "results in another order": (
        [ASKED, calls("a", "b"), result("b", "rb"), result("a", "ra")], "^U:uA:/(a)(b)$U:[ra]_[rb]A:/",
        "^U:uA:/(a)(b)$U:[ra]_[rb]A:/",
    ),
    "calls whose ids are not sorted": (
        [ASKED, calls("b", "a"), result("b", "rb"), result("a", "ra")], "^U:uA:/(b)(a)$U:[rb]_[ra]A:/",
        "^U:uA:/(a)(b)$U:[ra]_[rb]A:/",
    ),
    "an id twice": (
        [ASKED, calls("a", "a"), result("a", "one"), result("a", "two")], "^U:uA:/(a)(a)$U:[one]_[two]A:/", REFUSED,
    ),
    "a call without its result": ([ASKED, calls("a", "b"), result("b", "rb")], "^U:uA:/(a)(b)$U:[rb]A:/", REFUSED),
    "a call that the user passes over": ([ASKED, calls("a"), said("user", "v")], "^U:uA:/(a)$U:vA:/", REFUSED),
    "words of the user between results": (
        [ASKED, calls("a", "b"), result("b", "rb"), said("user", "v"), result("a", "ra")],
        "^U:uA:/(a)(b)$U:[ra]_v_[rb]A:/", REFUSED,
    ),
    "two assistants": ([ASKED, ANSWERED, ANSWERED, said("user", "v")], "^U:uA:/a$A:/a$U:vA:/", "^U:uA:/a$A:/a$U:vA:/"),
    "an assistant at the beginning": ([ANSWERED, ASKED], "^A:/a$U:uA:/", "^A:/a$U:uA:/"),
    "an assistant at the end": ([ASKED, ANSWERED], "^U:uA:/a$A:/", "^U:uA:/a$A:/"),
    "a reminder at the end": (
        [ASKED, said("latest_reminder", "m")], "^U:u<｜latest_reminder｜>mA:/", "^U:u<｜latest_reminder｜>mA:/",
    ),
    "a developer": ([said("developer", "d"), ASKED], "^U:dU:uA:/", REFUSED),
    "an empty user beside another": ([ASKED, said("user", "")], "^U:u_A:/", "^U:uA:/"),
}  # fmt: skip


@pytest.mark.parametrize("history", HISTORIES)
def test_histories_as_the_table_says(history: str) -> None:
    messages, ours, package = HISTORIES[history]
    assert short(encode_messages(messages, EFFORTS.of("chat")).text) == ours
    assert theirs(messages) == package
    assert encode_messages(messages, EFFORTS.of("low")).text.endswith(ASSISTANT + THINK)


@pytest.mark.parametrize("arguments", ["{bad", "[1]", "", "null", '{"a":NaN}', "7"])
def test_arguments_that_are_no_object_are_shown_as_the_package_does(arguments: str) -> None:
    messages = [ASKED, calls("a", arguments=arguments), result("a", "r")]
    text = short(encode_messages(messages, EFFORTS.of("chat")).text)
    assert text == theirs(messages)
    assert f'name="arguments" string="true">{arguments}</' in text
