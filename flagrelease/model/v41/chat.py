"""DeepSeek-V4.1's chat encoding: messages to prompt text. `v4/completion.py` takes the answer apart.

The rules are those of DeepSeek's `encoding/encoding.py` of V4.1. Against V4: a system turn has a token of its own and
may stand anywhere; the effort is a number in the first system turn; tags of calls have a space behind `｜DSML｜`; an
image is a part of a message and has one placeholder. `model/turns.py` says what messages may hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flagrelease.model.spelling import OF_V41
from flagrelease.model.turns import (
    ASSISTANT,
    END_THINK,
    RESPONSE_FORMAT,
    THINK,
    Form,
    Message,
    as_json,
    encode,
    reasoning_of,
    text_of,
)
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import EncodedChat, Own, Part

SYSTEM, IMAGE = "<｜System｜>", "<｜deepseek_image｜>"


def encode_messages(
    messages: Sequence[Message], effort: Effort, tools: Sequence[dict[str, Any]] = (), *, finished: bool = False
) -> EncodedChat:
    """The prompt for `messages`, which ends where the assistant is to continue, whoever spoke last.

    Earlier reasoning is left out, unless a message has tools: what was thought in front of the last message of a user
    (or of the system, behind the first turn) is of an earlier round. In a chat that thinks, a system turn with the
    effort comes first. `images` of the result are the parts that the placeholders stand for, in their order.

    Args:
        messages: in OpenAI's form, with the extensions that `model/turns.py` names; those of a system, a user or a
            tool may have `image_url` parts.
        effort: how much the model thinks (`v41/efforts.py`).
        tools: in OpenAI's form; they go to the first message, which must be the system's; one is put there if not.
        finished: an assistant's message that comes last ends the text: nothing is asked of the model.

    Raises:
        UsageError: an unknown role or task, or a message without what its role needs.
    """
    return encode(_FORM, messages, effort, tools, finished=finished)


def _head(effort: Effort, first: Message) -> list[str]:
    """A system turn opens the chat if there is something to say in it."""
    opens = effort.preamble or first.get("role") == "system"
    return [Own(SYSTEM), effort.preamble] if opens else []


def _continued(turn: Message, effort: Effort) -> tuple[list[str], Part]:
    """A chat that thinks shows its thought, empty if there is none; one that does not leaves it out."""
    reasoning, content = reasoning_of(turn) or "", text_of(turn)
    if not effort.thinks:
        return [Own(ASSISTANT + END_THINK), content], "content"
    if not content:
        return [Own(ASSISTANT + THINK), reasoning], "reasoning_content"
    return [Own(ASSISTANT + THINK), reasoning, Own(END_THINK), content], "content"


_FORM = Form(OF_V41, SYSTEM, IMAGE, RESPONSE_FORMAT % as_json({"type": "json_object"}), _head, _continued)
