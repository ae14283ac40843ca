"""The form that a request wants its answer to have: OpenAI's `response_format`, and vLLM's parameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from flagrelease.engine.constraints.schemas import Schema
from flagrelease.engine.constraints.wanted import ChosenAnswer, JsonAnswer, RegexAnswer
from flagrelease.engine.serve.requests.fields import Typed, neutral
from flagrelease.engine.serve.requests.refusals import ParameterError
from flagrelease.strict_json import parse_json

Form = JsonAnswer | RegexAnswer | ChosenAnswer
_OBJECT = JsonAnswer({"type": "object"})


class NamedSchema(Typed):
    """A JSON schema under a name. It is enforced whole whether `strict` or not, or refused."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Typed):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Typed):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Typed):
    """JSON that fulfils a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


_KINDS = ("text", "json_object", "json_schema")


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if kind in _KINDS else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[ObjectFormat, Tag("json_object")]
    | Annotated[SchemaFormat, Tag("json_schema")],
    Discriminator(
        _kind,
        custom_error_type="response_format",
        custom_error_message=f"Input should be an object whose type is one of {', '.join(_KINDS)}",
    ),
]


class StructuredOutputs(Typed):
    """vLLM's object for the same: one of the first four keys. There is nothing here that could be fallen back to."""

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None
    grammar: Annotated[Any, neutral()] = None
    structural_tag: Annotated[Any, neutral()] = None
    whitespace_pattern: Annotated[Any, neutral()] = None
    disable_fallback: Annotated[Any, neutral(False, True)] = None
    disable_any_whitespace: Annotated[Any, neutral(False)] = None
    disable_additional_properties: Annotated[Any, neutral(False)] = None


class Formed(Typed):
    """The parameters of both endpoints that say what an answer must be."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: Annotated[Any, neutral()] = None

    def form(self) -> tuple[str, Form] | None:
        """What the answer must be, and the parameter that says so; None: any text.

        Raises:
            ParameterError: two parameters say something, or one is no JSON schema.
        """
        given = self._given()
        if len(given) > 1:
            raise ParameterError(f"{given[0][0]} and {given[1][0]} both say what the answer must be", given[1][0])
        return given[0] if given else None

    def _given(self) -> list[tuple[str, Form]]:
        ours, theirs = self.response_format, self.structured_outputs or StructuredOutputs()
        given: list[tuple[str, Form | None]] = [
            ("response_format", _OBJECT if isinstance(ours, ObjectFormat) else None),
            ("response_format", JsonAnswer(ours.json_schema.schema_) if isinstance(ours, SchemaFormat) else None),
            ("structured_outputs.json", _schema(theirs.json_, "structured_outputs.json")),
            ("structured_outputs.regex", None if theirs.regex is None else RegexAnswer(theirs.regex)),
            ("structured_outputs.choice", None if theirs.choice is None else ChosenAnswer(tuple(theirs.choice))),
            ("structured_outputs.json_object", _OBJECT if theirs.json_object else None),
            ("guided_json", _schema(self.guided_json, "guided_json")),
            ("guided_regex", None if self.guided_regex is None else RegexAnswer(self.guided_regex)),
            ("guided_choice", None if self.guided_choice is None else ChosenAnswer(tuple(self.guided_choice))),
        ]
        return [(name, form) for name, form in given if form is not None]

    def told(self) -> dict[str, Any]:
        """What the system's message is to say of `response_format`, as DeepSeek's own interface does."""
        if isinstance(self.response_format, SchemaFormat):
            return {"response_format": self.response_format.json_schema.schema_}
        return {"json_object": True} if isinstance(self.response_format, ObjectFormat) else {}


def _schema(value: Schema | str | None, param: str) -> JsonAnswer | None:
    if isinstance(value, str):
        try:
            value = parse_json(value.encode())
        except ValueError as error:
            raise ParameterError(f"{param} is not JSON: {error}", param) from error
        if not isinstance(value, dict | bool):
            raise ParameterError(f"{param} is no JSON schema", param)
    return None if value is None else JsonAnswer(value)
