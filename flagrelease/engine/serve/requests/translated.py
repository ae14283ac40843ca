"""Requests of other interfaces as the chat that they mean, with refusals that name the places of those interfaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from pydantic import ValidationError

from flagrelease.engine.serve.requests.conversation import ChatMessage
from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.requests.refusals import ParameterError, invalid_parameter
from flagrelease.model.v4.chat import Message

Places = Mapping[str, str]
"""Patterns of a chat's parameters, and what the interface calls these places."""


def as_chat(messages: list[Message], parameters: dict[str, Any], places: Places) -> ChatRequest:
    """The chat request of `messages`, whose types were checked where they came from, and `parameters`.

    Parameters without a value are left out.

    Raises:
        ParameterError: a chat does not take a parameter.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    with renamed(places):
        try:
            chat = ChatRequest.model_validate({**given, "messages": [{"role": "user", "content": ""}]})
        except ValidationError as error:
            raise invalid_parameter(error.errors()[0], given) from error
    chat.messages = cast(list[ChatMessage], messages)  # a chat keeps its messages as they were sent
    return chat


@contextmanager
def renamed(places: Places) -> Iterator[None]:
    """Let refusals from inside name the interface's places instead of a chat's."""
    try:
        yield
    except ParameterError as error:
        message, param = str(error), error.param
        exact = _PLACE.match(message)
        if exact is not None and exact[0].startswith(param):
            param = exact[0]
        raise ParameterError(_named(message, places), _named(param, places), error.code, error.status) from error


_PLACE = re.compile(r"[\w.\[\]]+(?=: )")  # that a message begins with


def _named(text: str, places: Places) -> str:
    """`text` with the interface's name of the place that it begins with."""
    for pattern, place in places.items():
        if re.match(pattern, text):
            return re.sub(pattern, place, text, count=1)
    return text
