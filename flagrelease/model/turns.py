"""Messages as turns of a prompt: what the encodings of all families of DeepSeek have in common.

A family's own encoding is a `Form` and a few lines (`v4/chat.py`, `v41/chat.py`). Messages are dictionaries in OpenAI's
form with these extensions: the roles `developer` and `latest_reminder`, the keys `tools` and `response_format` in
system and developer messages, `task` in user messages, `reasoning_content` (or `reasoning`) and `prefix` in assistant
messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flagrelease.errors import UsageError
from flagrelease.model.spelling import Spelling
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import EncodedChat, Opening, Own, Part, placeholder
from flagrelease.model.v4.json_text import read_object

Message = dict[str, Any]

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, REMINDER = "<｜User｜>", "<｜Assistant｜>", "<｜latest_reminder｜>"
THINK, END_THINK = "<think>", "</think>"
TASKS = {name: f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "title", "read_url")}

_TOOLS = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"{block}" block like the following:

{block}
{invoke} name="$TOOL_NAME">
{parameter} name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{end_parameter}
...
{end_invoke}
{invoke} name="$TOOL_NAME2">
...
{end_invoke}
{end_block}

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, \
objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside \
<think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""
_AFTER_TOOLS = """

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n%s"


@dataclass(frozen=True, slots=True)
class Form:
    """How a family writes what others write otherwise.

    Attributes:
        spelling: of the markup of calls.
        system: the token that opens a system turn; empty where it has none.
        image: the token that stands for an image; None for a family that reads text only.
        json_object: what is said where a request wants any JSON object.
        head: the text in front of the first turn, from the effort and the first turn.
        continued: the beginning of an answer that is to be continued, and what the model goes on with.
    """

    spelling: Spelling
    system: str
    image: str | None
    json_object: str
    head: Callable[[Effort, Message], list[str]]
    continued: Callable[[Message, Effort], tuple[list[str], Part]]


def encode(
    form: Form, messages: Sequence[Message], effort: Effort, tools: Sequence[dict[str, Any]], *, finished: bool
) -> EncodedChat:
    """The prompt for `messages`, as `encode_messages` of a family says it.

    Raises:
        UsageError: an unknown role or task, or a message without what its role needs.
    """
    complete, prefix = _split_prefix(messages)
    turns = _merge_tool_results(_with_tools(complete, tools), form.image)
    keep_all = any(turn.get("tools") for turn in turns)
    asks = [i for i, turn in enumerate(turns) if _asks(turn, i, form)]
    last_user = max(asks, default=-1)
    texts: list[str] = [Own(BOS), *form.head(effort, turns[0] if turns else {})]
    ends = {} if finished and turns and turns[-1].get("role") == "assistant" else {"role": "assistant"}
    for i, turn in enumerate([*turns, ends]):
        before = turns[i - 1] if i else {}
        thinks = effort.thinks and (keep_all or (i > last_user if finished else i == len(turns)))
        if turn.get("role") == "assistant" and (i < len(turns) or prefix is None):
            # a task opens as the effort says, even in an earlier round
            texts.append(_opening(before, THINK if thinks or ("task" in before and effort.thinks) else END_THINK))
        if i < len(turns):
            if i and form.system and turn.get("role") == "system":
                texts.append(Own(form.system))
            texts += _render(form, turn, thinks=thinks and "task" not in before)
    if prefix is None:
        part: Part = "reasoning_content" if effort.thinks else "content"
    else:
        continued, part = form.continued(prefix, effort)
        texts += continued
    return EncodedChat.of(texts, Opening(part, effort.thinks, tools=keep_all, spelling=form.spelling))


def _asks(turn: Message, place: int, form: Form) -> bool:
    """Whether what was thought in front of this turn belongs to an earlier round."""
    if turn.get("role") == "system":
        return bool(form.system) and place > 0
    return turn.get("role") in ("user", "developer")


def reasoning_of(turn: Message) -> str | None:
    """What an assistant thought, under either of the names that clients use."""
    given = [turn[key] for key in ("reasoning_content", "reasoning") if turn.get(key) is not None]
    return next((text for text in given if text), given[0] if given else None)


def text_of(message: Message) -> str:
    """The content of a message that can hold text only.

    Raises:
        UsageError: a part of it is something else.
    """
    return "".join(_parts(message, None))


def as_json(value: Any) -> str:
    """As prompts have it.

    Raises:
        UsageError: it is nested too deeply.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise UsageError("a tool or a response_format is nested too deeply") from None


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


def _with_tools(messages: list[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    if not tools:
        return messages
    if not messages or messages[0].get("role") != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return [{**messages[0], "tools": list(tools)}, *messages[1:]]


def _merge_tool_results(messages: list[Message], image: str | None) -> list[Message]:
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
        parts = _parts(message, image)
        block = (order.get(message.get("tool_call_id", ""), 0), parts) if role == "tool" else (None, parts)
        if turns and turns[-1].get("role") == "user" and "task" not in turns[-1]:
            turns[-1]["blocks"].append(block)
        else:
            turns.append({"role": "user", "blocks": [block]})
        if "task" in message:
            turns[-1]["task"] = message["task"]
    return turns


def _parts(message: Message, image: str | None) -> list[str]:
    """The content as texts, with a blank line between the parts of a list; `image` takes the place of an image."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for part in content:
        if part.get("type") == "text":
            new = part.get("text")
        elif image is not None and part.get("type") == "image_url":
            new = placeholder(image, part)
        else:
            kind = "not text" if image is None else "neither text nor an image_url"
            reads = "text only" if image is None else "text and images"
            raise UsageError(f"a {message['role']} message has a part that is {kind}; this model reads {reads}")
        texts += ["\n\n", new] if texts else [new]
    return texts


def _render(form: Form, turn: Message, *, thinks: bool) -> list[str]:
    role = turn.get("role")
    if role == "system":
        return [*_parts(turn, form.image), *_instructions(form, turn)]
    if role == "developer":
        return [Own(USER), *_parts(turn, form.image), *_instructions(form, turn)]
    if role == "latest_reminder":
        return [Own(REMINDER), text_of(turn)]
    if role == "user":
        results = iter(sorted((b for b in turn["blocks"] if b[0] is not None), key=lambda block: block[0]))
        texts: list[str] = []
        for place, parts in turn["blocks"]:
            whole = parts if place is None else ["<tool_result>", *next(results)[1], "</tool_result>"]
            texts += ["\n\n", *whole] if texts else whole
        return [Own(USER), *texts]
    if role == "assistant":
        reasoning = [reasoning_of(turn) or "", Own(END_THINK)] if thinks else []
        calls = _render_calls(form, turn.get("tool_calls") or ())
        return [*reasoning, text_of(turn), *calls, Own(EOS)]
    raise UsageError(f"a message has the role {role!r}; known are system, developer, user, assistant, tool, "
                     "latest_reminder")  # fmt: skip


def _instructions(form: Form, turn: Message) -> list[str]:
    texts: list[str] = []
    if turn.get("tools"):
        spelling = form.spelling
        taught = _TOOLS.format(
            block=spelling.block, end_block=spelling.end_block, invoke=spelling.opening(spelling.invoke),
            end_invoke=spelling.end_invoke, parameter=spelling.opening(spelling.parameter),
            end_parameter=spelling.closing(spelling.parameter),
        )  # fmt: skip
        schemas = "\n".join(as_json(tool["function"]) for tool in turn["tools"])
        texts += [Own("\n\n" + taught), schemas, Own(_AFTER_TOOLS)]
    if turn.get("response_format"):
        texts.append("\n\n" + RESPONSE_FORMAT % as_json(turn["response_format"]))
    if turn.get("json_object"):
        texts.append("\n\n" + form.json_object)
    return texts


def _render_calls(form: Form, calls: Sequence[dict[str, Any]]) -> list[str]:
    if not calls:
        return []
    rendered = [text for call in calls for text in _render_call(form, call["function"])]
    return [Own(f"\n\n{form.spelling.block}\n"), *rendered, Own(form.spelling.end_block)]


def _render_call(form: Form, function: dict[str, Any]) -> list[str]:
    """A call. Arguments that are no JSON object become one parameter of that name, as in DeepSeek's encoder."""
    spelling, arguments = form.spelling, read_object(function["arguments"])
    if arguments is None:
        arguments = {"arguments": function["arguments"]}
    texts: list[str] = [Own(spelling.opening(spelling.invoke)), f' name="{function["name"]}">']
    texts.append("\n" if arguments else spelling.empty)
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        shown = value if is_text else as_json(value)
        texts += [Own(spelling.opening(spelling.parameter)), f' name="{key}" string="{as_json(is_text)}">{shown}']
        texts.append(Own(f"{spelling.closing(spelling.parameter)}\n"))
    return [*texts, Own(f"{spelling.end_invoke}\n")]


def _opening(turn: Message, thinking: str) -> Own:
    """What follows `turn` so that the assistant (or a short task) continues."""
    task = turn.get("task")
    if task is not None and task not in TASKS:
        raise UsageError(f"task {task!r}: known are {', '.join(TASKS)}")
    if task is not None and task != "action":
        return Own(TASKS[task])
    return Own(ASSISTANT + thinking + (TASKS[task] if task else ""))
