"""Building blocks of the typed requests: null means absent, values that change nothing, values that are done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidatorFunctionWrapHandler, model_validator
from pydantic_core import PydanticCustomError


class Typed(BaseModel):
    """An object of a request. Values are of exactly their type; a key that the model does not name is refused.

    A null is the same as no value wherever the key may be left out, as in OpenAI's interface.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {key: each for key, each in value.items() if each is not None or key not in optional}


def neutral(*values: Any) -> AfterValidator:
    """Take null and `values`, which change no answer, and refuse all others: the parameter is not done."""
    return AfterValidator(
        _only(values, "is not supported here; only {values} (or null) is accepted, which changes nothing")
    )


def done(*values: Any) -> AfterValidator:
    """Take `values`, and say of all others which those are."""
    return AfterValidator(_only(values, "is not supported here; it can be {values}"))


def as_sent(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a value against its type and keep it as it came: a prompt shows the keys and the order that were sent."""
    check(value)
    return value


def _only(values: tuple[Any, ...], words: str) -> Callable[[Any], Any]:
    said = words.replace("{values}", " or ".join(json.dumps(value) for value in values))

    def check(value: Any) -> Any:
        if not any(_same(value, each) for each in values):
            raise PydanticCustomError("unsupported_value", "{shown} " + said, {"shown": shown(value)})
        return value

    return check


def _same(value: Any, other: Any) -> bool:
    """Equality in JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def shown(value: Any) -> str:
    """A value in a message: its JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
