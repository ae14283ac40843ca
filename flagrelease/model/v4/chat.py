"""DeepSeek-V4's chat encoding: messages to prompt text. `completion.py` takes the answer apart.

The release has no jinja template. The rules and the fixed texts are those of DeepSeek's `encoding_dsv4.py`; its four
golden pairs are in `tests/golden/encoding`. `model/turns.py` says what messages may hold.
docs/chat.md tells where we differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flagrelease.errors import UsageError
from flagrelease.model.spelling import DSML as DSML
from flagrelease.model.spelling import OF_V4
from flagrelease.model.turns import ASSISTANT as ASSISTANT
from flagrelease.model.turns import BOS as BOS
from flagrelease.model.turns import END_THINK as END_THINK
from flagrelease.model.turns import EOS as EOS
from flagrelease.model.turns import REMINDER as REMINDER
from flagrelease.model.turns import RESPONSE_FORMAT, Form, as_json, encode, reasoning_of, text_of
from flagrelease.model.turns import TASKS as TASKS
from flagrelease.model.turns import THINK as THINK
from flagrelease.model.turns import USER as USER
from flagrelease.model.turns import Message as Message
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import EncodedChat, Own, Part

TOOL_CALLS, END_TOOL_CALLS = OF_V4.block, OF_V4.end_block

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
        messages: in OpenAI's form, with the extensions that `model/turns.py` names.
        effort: how much the model thinks, from the table of its revision (`Efforts.of`).
        tools: in OpenAI's form; they go to the first message, which must be the system's; one is put there if not.
        finished: an assistant's message that comes last ends the text: nothing is asked of the model.

    Raises:
        UsageError: an unknown role or task, or a message without what its role needs.
    """
    return encode(_FORM, messages, effort, tools, finished=finished)


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
            message = plain | {"content": f"{text_of(message)}\n\n{RESPONSE_FORMAT % as_json(wanted)}"}
        spelled.append(message)
    return spelled


def _head(effort: Effort, _: Message) -> list[str]:
    return [Own(effort.preamble)]


def _continued(turn: Message, effort: Effort) -> tuple[list[str], Part]:
    reasoning, content = reasoning_of(turn), text_of(turn)
    if reasoning and not content:
        return [Own(ASSISTANT + THINK), reasoning], "reasoning_content"
    if reasoning is not None:
        return [Own(ASSISTANT + THINK), reasoning, Own(END_THINK), content], "content"
    if content or not effort.thinks:
        return [Own(ASSISTANT + END_THINK), content], "content"
    return [Own(ASSISTANT + THINK)], "reasoning_content"


_FORM = Form(OF_V4, "", None, _JSON_OBJECT, _head, _continued)
