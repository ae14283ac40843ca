"""Chats of any family: the effort of a chat says whose encoding writes its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flagrelease.model.turns import Message
from flagrelease.model.v4 import chat as v4
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import EncodedChat
from flagrelease.model.v41 import chat as v41

_ENCODERS = {"deepseek_v4": v4.encode_messages, "deepseek_v41": v41.encode_messages}


def encode_messages(
    messages: Sequence[Message], effort: Effort, tools: Sequence[dict[str, Any]] = (), *, finished: bool = False
) -> EncodedChat:
    """The prompt for `messages`, as `encode_messages` of the family of `effort` says it.

    Args:
        messages: in OpenAI's form, with the extensions that `model/turns.py` names.
        effort: how much the model thinks, from the table of its revision (`Efforts.of`).
        tools: in OpenAI's form.
        finished: an assistant's message that comes last ends the text: nothing is asked of the model.

    Raises:
        UsageError: an unknown role or task, or a message without what its role needs.
    """
    return _ENCODERS[effort.family](messages, effort, tools, finished=finished)
