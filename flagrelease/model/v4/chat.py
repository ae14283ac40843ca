"""DeepSeek-V4's chat encoding: messages to prompt text. `completion.py` takes the answer apart.

The release has no jinja template. The rules and the fixed texts are those of DeepSeek's `encoding_dsv4.py`; its four
golden pairs are in `tests/golden/encoding`. Messages are dictionaries in OpenAI's form with these extensions: the roles
`developer` and `latest_reminder`, the keys `tools` and `response_format` in system and developer messages, `task` in
user messages, `reasoning_content` in assistant messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from flagrelease.errors import UsageError

Message = dict[str, Any]
Mode = Literal["chat", "thinking", "max"]  # answer at once; think first; think first, told to spare no effort

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, REMINDER = "<｜User｜>", "<｜Assistant｜>", "<｜latest_reminder｜>"
THINK, END_THINK = "<think>", "</think>"
DSML = "｜DSML｜"
TOOL_CALLS, END_TOOL_CALLS = f"<{DSML}tool_calls>", f"</{DSML}tool_calls>"
TASKS = {name: f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "title", "read_url")}

_MAX_EFFORT = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
)
_TOOLS = f"""## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"{TOOL_CALLS}" block like the following:

{TOOL_CALLS}
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$TOOL_NAME2">
...
</{DSML}invoke>
{END_TOOL_CALLS}

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, \
objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside \
{THINK}...{END_THINK} BEFORE any tool calls or final response.

Otherwise, output directly after {END_THINK} with tool calls or final response.

### Available Tool Schemas

%s

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
_RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n%s"


def encode_messages(messages: Sequence[Message], mode: Mode, tools: Sequence[dict[str, Any]] = ()) -> str:
    """The prompt text for `messages`, which ends where the assistant is to continue.

    Earlier reasoning is left out before the last user message, unless a message has tools: then the model needs what it
    thought between its calls. `tools` (OpenAI's form) go to the first message, which must be the system's; one is
    put there if it is not.

    Raises:
        UsageError: an unknown role, task or mode, or a message without what its role needs.
    """
    if mode not in ("chat", "thinking", "max"):
        raise UsageError(f"chat mode {mode!r}: known are chat, thinking and max")
    turns = _merge_tool_results(_with_tools(list(messages), tools))
    keep_all = any(turn.get("tools") for turn in turns)
    last_user = max((i for i, turn in enumerate(turns) if turn.get("role") in ("user", "developer")), default=-1)
    if mode != "chat" and not keep_all:
        # instructions of a developer in an earlier round belong to that round's reasoning and go with it
        kept = [turn for i, turn in enumerate(turns) if turn.get("role") != "developer" or i >= last_user]
        last_user -= len(turns) - len(kept)
        turns = kept
    text = BOS + (_MAX_EFFORT if mode == "max" else "")
    for i, turn in enumerate(turns):
        thinks = mode != "chat" and (keep_all or i >= last_user)
        after_task = i > 0 and "task" in turns[i - 1]
        text += _render(turn, thinks=thinks and not after_task)
        if i + 1 == len(turns) or turns[i + 1].get("role") in ("assistant", "latest_reminder"):
            # a task opens as the mode says, even in an earlier round
            text += _opening(turn, THINK if thinks or ("task" in turn and mode != "chat") else END_THINK)
    return text


def _with_tools(messages: list[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    if not tools:
        return messages
    if not messages or messages[0].get("role") != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return [{**messages[0], "tools": list(tools)}, *messages[1:]]


def _merge_tool_results(messages: list[Message]) -> list[Message]:
    """Join neighbouring user and tool messages to one user turn with `blocks`; results go in the order of the calls."""
    turns: list[Message] = []
    order: dict[str, int] = {}
    for message in messages:
        role = message.get("role")
        if role not in ("user", "tool"):
            if role == "assistant" and message.get("tool_calls"):
                order = {call.get("id", ""): i for i, call in enumerate(message["tool_calls"])}
            turns.append(message)
            continue
        text = _text(message)
        block = (order.get(message.get("tool_call_id", ""), 0), text) if role == "tool" else (None, text)
        if turns and turns[-1].get("role") == "user" and "task" not in turns[-1]:
            turns[-1]["blocks"].append(block)
        else:
            turns.append({"role": "user", "blocks": [block]})
        if "task" in message:
            turns[-1]["task"] = message["task"]
    return turns


def _text(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content if part.get("type") == "text"]
    if len(parts) != len(content):
        raise UsageError(f"a {message['role']} message has a part that is not text; this model reads text only")
    return "\n\n".join(parts)


def _render(turn: Message, *, thinks: bool) -> str:
    role = turn.get("role")
    if role == "system":
        return _text(turn) + _instructions(turn)
    if role == "developer":
        return USER + _text(turn) + _instructions(turn)
    if role == "latest_reminder":
        return REMINDER + _text(turn)
    if role == "user":
        results = iter(sorted((b for b in turn["blocks"] if b[0] is not None), key=lambda block: block[0]))
        return USER + "\n\n".join(
            text if place is None else f"<tool_result>{next(results)[1]}</tool_result>"
            for place, text in turn["blocks"]
        )
    if role == "assistant":
        reasoning = (turn.get("reasoning_content") or "") + END_THINK if thinks else ""
        return reasoning + _text(turn) + _render_calls(turn.get("tool_calls") or ()) + EOS
    raise UsageError(f"a message has the role {role!r}; known are system, developer, user, assistant, tool, "
                     "latest_reminder")  # fmt: skip


def _instructions(turn: Message) -> str:
    text = ""
    if turn.get("tools"):
        text += "\n\n" + _TOOLS % "\n".join(_json(tool["function"]) for tool in turn["tools"])
    if turn.get("response_format"):
        text += "\n\n" + _RESPONSE_FORMAT % _json(turn["response_format"])
    return text


def _render_calls(calls: Sequence[dict[str, Any]]) -> str:
    if not calls:
        return ""
    return f"\n\n{TOOL_CALLS}\n" + "".join(_render_call(call["function"]) for call in calls) + END_TOOL_CALLS


def _render_call(function: dict[str, Any]) -> str:
    try:
        arguments = json.loads(function["arguments"])
    except json.JSONDecodeError as error:
        raise UsageError(f"tool call {function['name']!r}: arguments are not JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise UsageError(f"tool call {function['name']!r}: arguments must be a JSON object")
    lines = [f'<{DSML}invoke name="{function["name"]}">']
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        shown = value if is_text else _json(value)
        lines.append(f'<{DSML}parameter name="{key}" string="{_json(is_text)}">{shown}</{DSML}parameter>')
    return "\n".join([*lines, f"</{DSML}invoke>", ""])


def _opening(turn: Message, thinking: str) -> str:
    """What follows a user's turn so that the assistant (or a short task) continues."""
    task = turn.get("task")
    if task is not None and task not in TASKS:
        raise UsageError(f"task {task!r}: known are {', '.join(TASKS)}")
    if task is not None and task != "action":
        return TASKS[task]
    if task is None and turn["role"] not in ("user", "developer"):
        return ""
    return ASSISTANT + thinking + (TASKS[task] if task else "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
