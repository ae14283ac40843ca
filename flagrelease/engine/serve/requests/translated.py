"""Requests of other interfaces as the chat that they mean, with refusals that name the places of those interfaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from flagrelease.engine.serve.requests.protocol import ChatRequest
from flagrelease.engine.serve.requests.refusals import ParameterError, invalid_parameter

Places = Mapping[str, str]
"""Patterns of a chat's parameters, and what the interface calls these places."""


def as_chat(document: dict[str, Any], places: Places) -> ChatRequest:
    """The chat request that `document` is; keys without a value are left out.

    Raises:
        ParameterError: a chat does not take it.
    """
    given = {key: value for key, value in document.items() if value is not None}
    with renamed(places):
        try:
            return ChatRequest.model_validate(given)
        except ValidationError as error:
            raise invalid_parameter(error.errors()[0], given) from error


@contextmanager
def renamed(places: Places) -> Iterator[None]:
    """Let refusals from inside name the interface's places instead of a chat's."""
    try:
        yield
    except ParameterError as error:
        param = error.param
        for pattern, place in places.items():
            if re.match(pattern, param):
                param = re.sub(pattern, place, param)
                break
        message = str(error)
        if message.startswith(error.param):
            message = param + message[len(error.param) :]
        raise ParameterError(message, param, error.code, error.status) from error
