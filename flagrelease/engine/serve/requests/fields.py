"""Building blocks of the typed requests: null means absent, values that change nothing, values that are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


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

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The fields, each of which may be null where it may be left out."""
        shown = handler.resolve_ref_schema(handler(schema))
        for name, field in shown.get("properties", {}).items():
            if name not in shown.get("required", ()):
                shown["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        return shown


@dataclass(frozen=True)
class Only:
    """Takes these values alone; the JSON schema says so too."""

    values: tuple[Any, ...]
    words: str  # of a refusal, behind the value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The type's own check, and then ours."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The values."""
        return {**handler(schema), "enum": list(self.values) or [None]}

    def _check(self, value: Any) -> Any:
        if not any(_same(value, each) for each in self.values):
            raise PydanticCustomError("unsupported_value", "{shown} " + self.words, {"shown": shown(value)})
        return value


def neutral(*values: Any) -> Only:
    """Take null and `values`, which change no answer, and refuse all others: the parameter is not done."""
    known = " or ".join(json.dumps(value) for value in values) + " (or null)" * bool(values)
    return Only(values, f"is not supported here; only {known or 'null'} is accepted, which changes nothing")


def done(*values: Any) -> Only:
    """Take `values`, and say of all others which those are."""
    return Only(values, f"is not supported here; it can be {' or '.join(json.dumps(value) for value in values)}")


def text_or(parts: str) -> Discriminator:
    """Tells a string, of the tag "text", from a list, whose tag is the name of its `parts`."""
    return Discriminator(
        lambda value: "text" if isinstance(value, str) else parts if isinstance(value, list) else None,
        custom_error_type="text_or_list",
        custom_error_message=f"Input should be a string or a list of {parts}",
    )


def as_sent(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a value against its type and keep it as it came: a prompt shows the keys and the order that were sent."""
    check(value)
    return value


def _same(value: Any, other: Any) -> bool:
    """Equality in JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def shown(value: Any) -> str:
    """A value in a message: its JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
