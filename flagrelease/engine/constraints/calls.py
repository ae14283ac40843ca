"""The grammar of a block of tool calls, in the markup that the prompt teaches (model/v4/markup.py).

Texts stand as they are, with `string="true"`; everything else stands as JSON, with `string="false"`. So does a text
whose schema has a pattern, a format or a combination of schemas, which only JSON's grammar can hold it to: DeepSeek's
parser and ours read it all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flagrelease.engine.constraints.schemas import MOST_CHARACTERS, Schema, check_schema, json_text
from flagrelease.errors import UsageError
from flagrelease.model.spelling import Spelling

_ROOT = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_NOTES = {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly",
          "writeOnly"}  # fmt: skip
_TYPES = ("number", "integer", "boolean", "null", "array", "object")  # all but texts
_NAME = re.compile(r'[^"\r\n]{1,256}')
_COMMENT = "  // "
_ANY_TEXT = "/(?s:.*)/"


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A function that may be called.

    Attributes:
        name: its name.
        parameters: their JSON schema; None: any parameters.
        strict: a keyword that cannot be enforced is refused, else it is left out.
        param: where the schema stands in the request.
    """

    name: str
    parameters: dict[str, Any] | None
    strict: bool
    param: str


def block_rules(tools: Sequence[CalledTool], dsml: int, spelling: Spelling, *, several: bool, opened: bool) -> str:
    """Lark rules, of which `block` is the block.

    Args:
        tools: what may be called.
        dsml: the id of the token that every tag has.
        spelling: of the words behind it.
        several: more than one call may be made.
        opened: the block's first `<` and that token have been written.

    Raises:
        UsageError: a schema holds what cannot be enforced here, or is too large.
    """
    check_schema([tool.parameters for tool in tools])
    rules = _Rules(f"<[{dsml}]>", spelling)
    calls = " | ".join([rules.call(tool) for tool in tools])
    before = "" if opened else f'"\\n\\n<" {rules.dsml}'
    rules.lines += [
        f"call: {calls}",
        f'block: {before} "{spelling.calls}>\\n" call{"+" if several else ""} "</" {rules.dsml} "{spelling.calls}>"',
    ]
    return "\n".join(rules.lines) + "\n"


def place_of(line: str) -> str:
    """Where in the request the schema stands that a line of the grammar holds; empty if it does not say."""
    return line.rpartition(_COMMENT)[2] if _COMMENT in line else ""


@dataclass(slots=True)
class _Rules:
    dsml: str
    spelling: Spelling
    lines: list[str] = field(default_factory=list)
    size: int = 0

    def _new(self, kind: str, body: str) -> str:
        name = f"{kind}{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        self.size += len(body)
        if self.size > 2 * MOST_CHARACTERS:  # definitions stand in every parameter that refers to them
            raise UsageError(
                f"the tools' schemas together make a grammar of more than {2 * MOST_CHARACTERS} characters"
            )
        return name

    def call(self, tool: CalledTool) -> str:
        """The rule of a call."""
        _check_name(tool.name, "a function")
        parameters = self._any_parameters(True) if tool.parameters is None else self._parameters(tool)
        opening = _quoted(f'{self.spelling.invoke} name="{tool.name}">\n')
        # V4.1 has a blank line where there are no parameters
        blank = '"\\n"?' if self.spelling.empty != "\n" else ""
        closing = f'{blank} "</" {self.dsml} "{self.spelling.invoke}>\\n"'
        return self._new("call", f'"<" {self.dsml} {opening} {parameters} {closing}')

    def _parameters(self, tool: CalledTool) -> str:
        schema = _root(tool)
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        more = schema.get("additionalProperties", "properties" not in schema)  # an empty object of them means none
        if not properties and not required and more is not False:
            return self._any_parameters(more, tool)
        if missing := sorted(required - set(properties)):
            raise UsageError(f"{tool.param}: the required property {missing[0]!r} is not among the properties")
        definitions = _definitions(schema)
        return " ".join(
            self._parameter(name, each, definitions, tool) + ("" if name in required else "?")
            for name, each in properties.items()
        )

    def _parameter(self, name: str, schema: Schema, definitions: dict[str, Any], tool: CalledTool) -> str:
        _check_name(name, f"{tool.param}: a property")
        place = f"{tool.param}.properties.{name}"
        return self._tagged(
            _quoted(f'{self.spelling.parameter} name="{name}" string="'),
            _Forms.of(schema, definitions, place),
            tool,
            place,
        )

    def _any_parameters(self, schema: Schema, tool: CalledTool | None = None) -> str:
        """Parameters of any name, each by `schema`."""
        name = f'"{self.spelling.parameter} name=\\"" /{_NAME.pattern}/ "\\" string=\\""'
        place = "" if tool is None else f"{tool.param}.additionalProperties"
        return self._tagged(name, _Forms.of(schema, {}, place), tool, place) + "*"

    def _tagged(self, opening: str, forms: _Forms, tool: CalledTool | None, place: str) -> str:
        """A parameter. `place` stands in a comment, from which a refusal takes it (`place_of`)."""
        begin, close = f'"<" {self.dsml} {opening}', f'{self.dsml} "{self.spelling.parameter}>\\n"'
        ways = []
        if forms.texts:
            # one lexeme with the `</` behind it: the lexer would take that for a part of the text otherwise
            text = self._new("TEXT", f'({" | ".join(forms.texts)}) "</"')
            ways.append(f'"true\\">" {text} {close}')
        for schema in forms.others:
            lenient = tool is None or not tool.strict
            value = self._new("json", f"%json {json_text(schema, lenient=lenient)}{_COMMENT}{place}")
            ways.append(f'"false\\">" {value} "</" {close}')
        return self._new("parameter", f"{begin} ({' | '.join(ways)})")


@dataclass(slots=True)
class _Forms:
    """How a value may be written: terminals of texts, and schemas of what is JSON."""

    texts: list[str] = field(default_factory=list)
    others: list[Schema] = field(default_factory=list)

    @classmethod
    def of(cls, schema: Schema, definitions: dict[str, Any], place: str) -> _Forms:
        """Both for one parameter."""
        forms = cls()
        try:
            forms._add(schema, definitions, ())
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from error
        if not forms.texts and not forms.others:
            raise UsageError(f"{place}: no value fulfils the schema")
        return forms

    def _add(self, schema: Schema, definitions: dict[str, Any], seen: tuple[str, ...]) -> None:
        if not isinstance(schema, dict | bool):
            raise UsageError("a schema must be an object, true or false")
        if schema is False:
            return
        keys = set() if schema is True else set(schema) - _NOTES
        whole: dict[str, Any] = {} if schema is True else {key: schema[key] for key in keys}
        if (
            keys == {"$ref"}
            and (found := _defined(whole["$ref"], definitions)) is not None
            and whole["$ref"] not in seen
        ):
            self._add(found, definitions, (*seen, whole["$ref"]))
        elif keys == {"anyOf"} and isinstance(whole["anyOf"], list):
            for each in whole["anyOf"]:
                self._add(each, definitions, seen)
        elif keys in ({"enum"}, {"const"}, {"enum", "type"}, {"const", "type"}):
            self._add_values(whole)
        elif keys <= {"type", "minLength", "maxLength"} and "string" in _types(whole):
            self.texts.append(_bounded(whole))
            if rest := [kind for kind in _types(whole) if kind != "string"]:
                self.others.append({"type": rest})
        else:
            self.others.append({**whole, **definitions} if "$ref" in json.dumps(whole) else whole)

    def _add_values(self, schema: dict[str, Any]) -> None:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list):
            raise UsageError("enum must be a list")
        if "string" in _types(schema):
            self.texts += [_quoted(value) for value in values if isinstance(value, str)]
        rest = [value for value in values if not isinstance(value, str)]
        kinds = [kind for kind in _types(schema) if kind != "string"]
        if rest and kinds:
            self.others.append({"enum": rest, "type": kinds})


def _types(schema: dict[str, Any]) -> list[str]:
    kind = schema.get("type", ["string", *_TYPES])
    kinds = kind if isinstance(kind, list) else [kind]
    if unknown := [each for each in kinds if each not in ("string", *_TYPES)]:
        raise UsageError(f"the type {unknown[0]!r} is unknown")
    return kinds


def _bounded(schema: dict[str, Any]) -> str:
    least, most = schema.get("minLength"), schema.get("maxLength")
    if least is None and most is None:
        return _ANY_TEXT
    if not all(bound is None or (type(bound) is int and bound >= 0) for bound in (least, most)):
        raise UsageError("minLength and maxLength must be whole numbers")
    return f"/(?s:.{{{least or 0},{'' if most is None else most}}})/"


def _definitions(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key in ("$defs", "definitions")}


def _defined(reference: Any, definitions: dict[str, Any]) -> Schema | None:
    parts = reference.split("/") if isinstance(reference, str) else []
    if len(parts) != 3 or parts[0] != "#" or not isinstance(definitions.get(parts[1]), dict):
        return None
    found: Schema | None = definitions[parts[1]].get(parts[2])
    return found


def _root(tool: CalledTool) -> dict[str, Any]:
    """The schema of all parameters, whose forms are few: they are not written as JSON."""
    assert tool.parameters is not None
    schema = tool.parameters
    definitions = _definitions(schema)
    if (found := _defined(schema.get("$ref"), definitions)) is not None:
        schema = {**definitions, **(found if isinstance(found, dict) else {})}
    others = sorted(set(schema) - _ROOT - _NOTES)
    if others and tool.strict:
        raise UsageError(f"{tool.param}: {others[0]} cannot be enforced on all parameters together")
    if schema.get("type", "object") != "object":
        raise UsageError(f"{tool.param}: the type of the parameters must be object")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise UsageError(f"{tool.param}: properties must be an object, and required a list")
    if not all(isinstance(name, str) for name in required):
        raise UsageError(f"{tool.param}: required must be a list of names")
    return schema


def _check_name(name: str, what: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"{what} is called {name[:80]!r}, which the markup of calls cannot hold")


def _quoted(text: str) -> str:
    """A literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)
