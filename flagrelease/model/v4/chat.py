"""DeepSeek-V4's chat encoding: messages to prompt text. `completion.py` takes the answer apart.

The release has no jinja template. The rules and the fixed texts are those of DeepSeek's `encoding_dsv4.py`; its four
golden pairs are in `tests/golden/encoding`. Messages are dictionaries in OpenAI's form with these extensions: the roles
`developer` and `latest_reminder`, the keys `tools` and `response_format` in system and developer messages, `task` in
user messages, `reasoning_content` (or `reasoning`) and `prefix` in assistant messages.
docs/chat.md tells where we differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flagrelease.errors import UsageError
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import EncodedChat, Opening, Own, Part
from flagrelease.model.v4.json_text import read_object

Message = dict[str, Any]

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, REMINDER = "<｜User｜>", "<｜Assistant｜>", "<｜latest_reminder｜>"
THINK, END_THINK = "<think>", "</think>"
DSML = "｜DSML｜"
TOOL_CALLS, END_TOOL_CALLS = f"<{DSML}tool_calls>", f"</{DSML}tool_calls>"
TASKS = {name: f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "title", "read_url")}

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
# of a request's response_format, by DeepSeek's request conversion (deepseek-recipe 0.2.0)
_JSON_OBJECT = (
    "You are a helpful assistant designed to output JSON.\n## Response Format:\n\nReply with JSON object ONLY."
)


def encode_messages(
    messages: Sequence[Message], effort: Effort, tools: Sequence[dict[str, Any]] = (), *, finished: bool = False
) -> EncodedChat:
    """The prompt for `messages`, which ends where the assistant is to continue, whoever spoke last.

    Earlier reasoning is left out (of a `finished` chat, that before the last user message), unless a message has tools:
    then the model needs what it thought between its calls. An assistant's message that comes last and has `prefix` set
    is continued.

    Args:
        messages: in OpenAI's form, with the extensions that this module names.
        effort: how much the model thinks, from the table of its revision (`Efforts.of`).
        tools: in OpenAI's form; they go to the first message, which must be the system's; one is put there if not.
        finished: an assistant's message that comes last ends the text: nothing is asked of the model.

    Raises:
        UsageError: an unknown role or task, or a message without what its role needs.
    """
    complete, prefix = _split_prefix(messages)
    turns = _merge_tool_results(_with_tools(complete, tools))
    keep_all = any(turn.get("tools") for turn in turns)
    last_user = max((i for i, turn in enumerate(turns) if turn.get("role") in ("user", "developer")), default=-1)
    texts: list[str] = [Own(BOS + effort.preamble)]
    ends = {} if finished and turns and turns[-1].get("role") == "assistant" else {"role": "assistant"}
    for i, turn in enumerate([*turns, ends]):
        before = turns[i - 1] if i else {}
        thinks = effort.thinks and (keep_all or (i > last_user if finished else i == len(turns)))
        if turn.get("role") == "assistant" and (i < len(turns) or prefix is None):
            # a task opens as the effort says, even in an earlier round
            texts.append(_opening(before, THINK if thinks or ("task" in before and effort.thinks) else END_THINK))
        if i < len(turns):
            texts += _render(turn, thinks=thinks and "task" not in before)
    if prefix is None:
        part: Part = "reasoning_content" if effort.thinks else "content"
    else:
        continued, part = _continued(prefix, effort)
        texts += continued
    return EncodedChat.of(texts, Opening(part, effort.thinks, tools=keep_all))


def with_format_in_text(messages: Sequence[Message]) -> list[Message]:
    """The same chat without the key `response_format`, which is not OpenAI's: the content says it, as it is rendered.

    Raises:
        UsageError: a message has tools too, which the encoding puts between content and format.
    """
    spelled = []
    for message in messages:
        if (wanted := message.get("response_format")) is not None:
            if message.get("tools"):
                raise UsageError("response_format: cannot be said in the content of a message with tools")
            plain = {key: value for key, value in message.items() if key != "response_format"}
            message = plain | {"content": f"{_text(message)}\n\n{_RESPONSE_FORMAT % _json(wanted)}"}
        spelled.append(message)
    return spelled


def _split_prefix(messages: Sequence[Message]) -> tuple[list[Message], Message | None]:
    """The messages without the last one, and that one, if it is to be continued."""
    if not any(message.get("prefix") for message in messages):
        return list(messages), None
    *earlier, last = messages
    if last.get("role") != "assistant" or any(message.get("prefix") for message in earlier):
        raise UsageError("prefix: only the last message can be continued, and it must be the assistant's")
    if last.get("tool_calls"):
        raise UsageError("prefix: a message with tool_calls cannot be continued")
    return earlier, last


def _continued(turn: Message, effort: Effort) -> tuple[list[str], Part]:
    """The beginning of an answer, and what the model goes on with."""
    reasoning, content = _reasoning(turn), _text(turn)
    if reasoning and not content:
        return [Own(ASSISTANT + THINK), reasoning], "reasoning_content"
    if reasoning is not None:
        return [Own(ASSISTANT + THINK), reasoning, Own(END_THINK), content], "content"
    if content or not effort.thinks:
        return [Own(ASSISTANT + END_THINK), content], "content"
    return [Own(ASSISTANT + THINK)], "reasoning_content"


def _reasoning(turn: Message) -> str | None:
    """What an assistant thought, under either of the names that clients use."""
    given = [turn[key] for key in ("reasoning_content", "reasoning") if turn.get(key) is not None]
    return next((text for text in given if text), given[0] if given else None)


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


def _render(turn: Message, *, thinks: bool) -> list[str]:
    role = turn.get("role")
    if role == "system":
        return [_text(turn), *_instructions(turn)]
    if role == "developer":
        return [Own(USER), _text(turn), *_instructions(turn)]
    if role == "latest_reminder":
        return [Own(REMINDER), _text(turn)]
    if role == "user":
        results = iter(sorted((b for b in turn["blocks"] if b[0] is not None), key=lambda block: block[0]))
        blocks = (
            text if place is None else f"<tool_result>{next(results)[1]}</tool_result>"
            for place, text in turn["blocks"]
        )
        return [Own(USER), "\n\n".join(blocks)]
    if role == "assistant":
        reasoning = [_reasoning(turn) or "", Own(END_THINK)] if thinks else []
        return [*reasoning, _text(turn), *_render_calls(turn.get("tool_calls") or ()), Own(EOS)]
    raise UsageError(f"a message has the role {role!r}; known are system, developer, user, assistant, tool, "
                     "latest_reminder")  # fmt: skip


def _instructions(turn: Message) -> list[str]:
    texts: list[str] = []
    if turn.get("tools"):
        before, after = _TOOLS.split("%s")
        schemas = "\n".join(_json(tool["function"]) for tool in turn["tools"])
        texts += [Own("\n\n" + before), schemas, Own(after)]
    if turn.get("response_format"):
        texts.append("\n\n" + _RESPONSE_FORMAT % _json(turn["response_format"]))
    if turn.get("json_object"):
        texts.append("\n\n" + _JSON_OBJECT)
    return texts


def _render_calls(calls: Sequence[dict[str, Any]]) -> list[str]:
    if not calls:
        return []
    rendered = [text for call in calls for text in _render_call(call["function"])]
    return [Own(f"\n\n{TOOL_CALLS}\n"), *rendered, Own(END_TOOL_CALLS)]


def _render_call(function: dict[str, Any]) -> list[str]:
    """A call. Arguments that are no JSON object become one parameter of that name, as in DeepSeek's encoder."""
    arguments = read_object(function["arguments"])
    if arguments is None:
        arguments = {"arguments": function["arguments"]}
    texts: list[str] = [Own(f"<{DSML}invoke"), f' name="{function["name"]}">\n']
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        shown = value if is_text else _json(value)
        texts += [Own(f"<{DSML}parameter"), f' name="{key}" string="{_json(is_text)}">{shown}']
        texts.append(Own(f"</{DSML}parameter>\n"))
    return [*texts, Own(f"</{DSML}invoke>\n")]


def _opening(turn: Message, thinking: str) -> Own:
    """What follows `turn` so that the assistant (or a short task) continues."""
    task = turn.get("task")
    if task is not None and task not in TASKS:
        raise UsageError(f"task {task!r}: known are {', '.join(TASKS)}")
    if task is not None and task != "action":
        return Own(TASKS[task])
    return Own(ASSISTANT + thinking + (TASKS[task] if task else ""))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise UsageError("a tool or a response_format is nested too deeply") from None
