"""Completions taken apart, compared with DeepSeek's own parser on every split, and where ours differs on purpose."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import deepseek_recipe as recipe
import pytest

from flagrelease.model.v4 import completion, dsml, markup, quoting
from flagrelease.model.v4.chat import DSML, END_TOOL_CALLS, TOOL_CALLS
from flagrelease.model.v4.completion import Completion, CompletionStream, gather, parse_completion
from flagrelease.model.v4.encoded import Opening

CHAT = Opening("content", thinks=False, tools=True)
THINKING = Opening("reasoning_content", thinks=True, tools=True)


def parameter(name: str, value: str, string: str = "true") -> str:
    return f'<{DSML}parameter name="{name}" string="{string}">{value}</{DSML}parameter>\n'


def invoke(name: str, inside: str) -> str:
    return f'<{DSML}invoke name="{name}">\n{inside}</{DSML}invoke>\n'


CLOSE, END = f"</{DSML}invoke>", f"</{DSML}parameter>"
ONE = invoke("f", parameter("a", "x"))
BLOCK = f"\n\n{TOOL_CALLS}\n{ONE}{END_TOOL_CALLS}"
LEAD = f"Hi\n\n{TOOL_CALLS}\n"

Whole = tuple[str, str | None, list[tuple[str, str]]]


def deepseek(text: str, opening: Opening, size: int | None = None) -> Whole:
    """`size`: of the pieces in which its stream gets the text."""
    thinks = opening.thinks
    request = recipe.ChatCompletionRequest(
        {
            "model": "DeepSeek-V4-Pro",
            "messages": [{"role": "user", "content": "x"}],
            "thinking": {"type": "enabled" if thinks else "disabled"},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        }
    )
    generator = recipe.ChatCompletionRequest.chunk_generator(
        request.convert(recipe.ConversionOptions()), "id", "DeepSeek-V4-Pro"
    )
    stage = recipe.ThinkingInitialStage.ReasoningStart if thinks else None
    processor = recipe.StreamProcessor(generator, recipe.ParsingOptions(thinking_initial_stage=stage))
    answer = recipe.ChatCompletionResponse("id", "m", 0, 0, 0)
    size = size or len(text)
    chunks = [
        chunk
        for place in range(0, len(text), size)
        for chunk in processor.push(recipe.InferenceChunk.text(text[place : place + size], 1))
    ]
    chunks += processor.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
    for chunk in chunks:
        answer.accumulate(chunk)  # type: ignore[arg-type]
    message = json.loads(answer.to_json())["choices"][0]["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    return message.get("content") or "", message.get("reasoning_content"), calls


def streamed(pieces: list[str], opening: Opening) -> Completion:
    stream = CompletionStream.start(opening)
    said = [piece for text in pieces for piece in stream.push(text)]
    return gather([*said, *stream.end()], opening, as_taught=stream.as_taught)


def ours(text: str, opening: Opening) -> Whole:
    """Of the whole text, of every split in two, and of single characters, which must agree."""
    whole = parse_completion(text, opening)
    for place in range(0, len(text), max(1, len(text) // 400)):
        assert streamed([text[:place], text[place:]], opening) == whole, place
    assert streamed(list(text), opening) == whole
    for call in whole.tool_calls:
        assert isinstance(json.loads(call.arguments, parse_int=str), dict)
    return whole.content, whole.reasoning, [(call.name, call.arguments) for call in whole.tool_calls]


SAME = {
    "as taught": f"Hi{BLOCK}",
    "one newline before": f"Hi\n{TOOL_CALLS}\n{ONE}{END_TOOL_CALLS}",
    "no newline anywhere": f"Hi{BLOCK}".replace("\n", ""),
    "indented tags": f'{LEAD}  <{DSML}invoke name="f">\n    {parameter("a", "x")}  </{DSML}invoke>\n{END_TOOL_CALLS}',
    "no wrapper": f"Hi\n\n{ONE}",
    "a wrapper that only closes": f"Hi\n\n{ONE}{END_TOOL_CALLS}",
    "another wrapper": f"Hi{BLOCK}".replace("tool_calls", "function_calls"),
    "a misspelt wrapper": f"Hi{BLOCK}".replace("tool_calls", "tool_call"),
    "an invoke that is not closed": f'{LEAD}<{DSML}invoke name="f">\n{parameter("a", "x")}{END_TOOL_CALLS}',
    "a parameter that is not closed": f"{LEAD}{ONE.replace(f'</{DSML}parameter>', '')}{END_TOOL_CALLS}",
    "a wrapper that is not closed": f"{LEAD}{ONE}",
    "no parameter": f"{LEAD}{invoke('f', '')}{END_TOOL_CALLS}",
    "a blank line in an empty invoke": f"{LEAD}{invoke('f', chr(10))}{END_TOOL_CALLS}",
    "a parameter twice": f"{LEAD}{invoke('f', parameter('a', 'x') + parameter('a', 'y'))}{END_TOOL_CALLS}",
    "an empty block": f"{LEAD}{END_TOOL_CALLS}",
    "two calls": f"{LEAD}{ONE}{invoke('g', parameter('b', '[1, 2]', 'false') + parameter('c', '1.50', 'false'))}"
    f"{END_TOOL_CALLS}",
    "text that JSON escapes": f"{LEAD}{invoke('f', parameter('a', chr(10) + chr(34) + chr(92) + 'é' + chr(0)))}"
    f"{END_TOOL_CALLS}",
    "a long number": f"{LEAD}{invoke('f', parameter('a', '9' * 5000, 'false'))}{END_TOOL_CALLS}",
    "more digits than a double has": f"{LEAD}{invoke('f', parameter('a', '0.1234567890123456789', 'false'))}"
    f"{END_TOOL_CALLS}",
    "no call": "Hi there <b> and </b>",
    "an invoke that ends in itself": f'{LEAD}<{DSML}invoke name="f"/>\n{END_TOOL_CALLS}',
    "an invoke that ends in itself, behind another": f'{LEAD}{ONE}<{DSML}invoke name="g" />\n{END_TOOL_CALLS}',
    "a wrapper without its bracket": f"Hi{BLOCK}".replace(f"{TOOL_CALLS}", TOOL_CALLS[:-1]),
    "a wrapper that begins twice": f"Hi\n\n{TOOL_CALLS[:-1]}<tool_calls>\n\n{ONE}{END_TOOL_CALLS}",
    "a wrapper that trails off": f"Hi\n\n{TOOL_CALLS[:-1]}...\n\n{ONE}{END_TOOL_CALLS}",
    "a wrapper that becomes a sentence": f"Hi\n\n{TOOL_CALLS[:-1]}, so I look it up.\n{ONE}",
    "a damaged wrapper before a sound one": f"Hi\n\n<{DSML}toolcall>\n{TOOL_CALLS}\n{ONE}{END_TOOL_CALLS}",
    "a wrapper that opens where it should close": f"{LEAD}{ONE}{TOOL_CALLS}",
    "an invoke that opens where it should close": LEAD + ONE.replace(CLOSE, f"<{DSML}invoke>") + END_TOOL_CALLS,
    "a closing tag without its bracket": LEAD + ONE.replace(END, END[:-1]) + END_TOOL_CALLS,
    "closing tags without their brackets": LEAD
    + invoke("f", parameter("a", "x") + parameter("b", "y")).replace(END, END[:-1]).replace(CLOSE, CLOSE[:-1])
    + END_TOOL_CALLS,
    "no closing tag before the next parameter": LEAD
    + invoke("f", parameter("a", "x").replace(END, "") + parameter("b", "y"))
    + END_TOOL_CALLS,
    "markup of V4.1": f'{LEAD}<{DSML} invoke name="f">\n</{DSML} invoke>\n</{DSML} calls>',
}


@pytest.mark.parametrize("case", SAME)
def test_what_deepseeks_parser_takes_is_taken_alike_on_every_split(case: str) -> None:
    whole = ours(SAME[case], CHAT)
    for size in (1, 2, 5, None):
        assert deepseek(SAME[case], CHAT, size) == whole, size


@pytest.mark.parametrize("case", SAME)
def test_so_it_is_after_a_thought(case: str) -> None:
    text = f"Hm.</think>{SAME[case]}"
    whole = ours(text, THINKING)
    for size in (1, 2, 5, None):
        assert deepseek(text, THINKING, size) == whole, size


def test_a_thought_that_is_not_closed_before_its_calls() -> None:
    assert ours(f"Hm.{BLOCK}", THINKING) == deepseek(f"Hm.{BLOCK}", THINKING) == (
        "", "Hm.", [("f", '{"a": "x"}')],
    )  # fmt: skip


@pytest.mark.parametrize("behind", ["", "</think>", "\n</think>\n", " "])
def test_a_thought_that_ends_with_its_calls(behind: str) -> None:
    # closed right behind them, the thought kept the calls, and the message was empty: an agent's turn ended
    text = f"Hm.{BLOCK}{behind}"
    assert ours(text, THINKING) == deepseek(text, THINKING) == ("", "Hm.", [("f", '{"a": "x"}')])


@pytest.mark.parametrize("opening", [CHAT, THINKING])
def test_without_tools_the_markup_is_text(opening: Opening) -> None:
    # who offered no tools got calls; DeepSeek's package reads none either (parse_tool_calls)
    text = f"{'Hm.</think>' if opening.thinks else ''}Hi{BLOCK} and"
    whole = parse_completion(text, replace(opening, tools=False))
    assert (whole.content, whole.tool_calls) == (f"Hi{BLOCK} and", ())


CALL = ("f", '{"a": "x"}')
# what: (text, ours); DeepSeek's parser gives something else, which the test holds too
DIFFERENT: dict[str, tuple[str, Whole]] = {
    "text after the block is kept": (f"Hi{BLOCK} after", ("Hi after", None, [CALL])),
    "a second block": (f"Hi{BLOCK}{BLOCK}", ("Hi", None, [CALL, CALL])),
    "a block after an empty one": (f"{LEAD}{END_TOOL_CALLS}{BLOCK}", ("Hi", None, [CALL])),
    "an invoke that is not closed before the next": (
        f"{LEAD}{ONE.replace(f'</{DSML}invoke>', '')}{ONE}{END_TOOL_CALLS}", ("Hi", None, [CALL, CALL]),
    ),
    "a value that ends with the answer": (
        f'{LEAD}<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">x', ("Hi", None, [CALL]),
    ),
    "a mention of the wrapper": (f"Write `{TOOL_CALLS}` first.", (f"Write `{TOOL_CALLS}` first.", None, [])),
    "a mention of an invoke": (
        f'Write <{DSML}invoke name="f"> first.', (f'Write <{DSML}invoke name="f"> first.', None, []),
    ),
    "a block shown in a fence": (f"See:\n```{BLOCK}\n```\nok", (f"See:\n```{BLOCK}\n```\nok", None, [])),
    "a block shown in another fence": (f"See:\n~~~xml{BLOCK}\n~~~\nok", (f"See:\n~~~xml{BLOCK}\n~~~\nok", None, [])),
    "a fence of the other kind does not end it": (
        f"```\n~~~{BLOCK}\n```{BLOCK}", (f"```\n~~~{BLOCK}\n```", None, [CALL]),
    ),
    "an invoke that ends in itself, alone": (f'Hi\n\n<{DSML}invoke name="f"/>', ("Hi", None, [("f", "{}")])),
    "a mention of one": (ALONE := f'Write <{DSML}invoke name="f"/> first.', (ALONE, None, [])),
    "a mention of a damaged wrapper": (NOT := f"Not {TOOL_CALLS[:-1]}\nbut text.", (NOT, None, [])),
    "a mention within a line, in front of calls": (f"So <{DSML} x\n\n{ONE}", (f"So <{DSML} x", None, [CALL])),
    "a parameter that the invoke closes, before another call": (
        LEAD + ONE.replace(END, "") + ONE + END_TOOL_CALLS, ("Hi", None, [("f", '{"a": "x\\n"}'), CALL]),
    ),
    "words in an invoke": (WORDS := LEAD + invoke("f", "switch it on") + END_TOOL_CALLS, (WORDS, None, [])),
    "an object with words behind it": (MORE := LEAD + invoke("f", "{} done") + END_TOOL_CALLS, (MORE, None, [])),
    "a call shown in backticks": (f"`<{DSML}x>{ONE}`", (f"`<{DSML}x>{ONE}`", None, [])),
    "closing tags inside a value": (
        f"{LEAD}{invoke('f', parameter('a', f'1 {END_TOOL_CALLS} 2 </{DSML}invoke> 3 </{DSML}parameter> 4'))}"
        f"{END_TOOL_CALLS}",
        ("Hi", None, [("f", f'{{"a": "1 {END_TOOL_CALLS} 2 </{DSML}invoke> 3 </{DSML}parameter> 4"}}')]),
    ),
    "an object in the invoke": (
        LEAD + invoke("f", '{"a": [1]}') + END_TOOL_CALLS, ("Hi", None, [("f", '{"a": [1]}')]),
    ),
    "no word on the type": (
        LEAD + ONE.replace(' string="true"', "") + END_TOOL_CALLS, ("Hi", None, [CALL]),
    ),
    "attributes in another order": (
        LEAD + ONE.replace('name="a" string="true"', 'string="true" name="a"') + END_TOOL_CALLS,
        ("Hi", None, [CALL]),
    ),
    **{
        f"a value that is no JSON: {value[:9]}": (
            f"{LEAD}{invoke('f', parameter('a', value, 'false'))}{END_TOOL_CALLS}",
            ("Hi", None, [("f", json.dumps({"a": value}))]),
        )
        for value in ("{bad", "NaN", "", '"\\ud83d"', "[" * 300 + "]" * 300, "01", '{"a" 1}', "[1,]")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_differences_from_deepseeks_parser(case: str) -> None:
    text, expected = DIFFERENT[case]
    assert ours(text, CHAT) == expected
    assert deepseek(text, CHAT) != expected


def test_a_thought_may_speak_of_calls() -> None:
    assert ours(f"I could{BLOCK} or not.</think>Hi", THINKING) == ("Hi", f"I could{BLOCK} or not.", [])
    assert ours(f"I could{BLOCK} or not{BLOCK}", THINKING) == ("", f"I could{BLOCK} or not", [CALL])


@pytest.mark.parametrize(
    "value", ["[" * 2000 + "]" * 2000, "[" * 100_000, "-" + "9" * 5000, "1e999", '"\\ud83d"', "\ud83d"]
)
def test_nothing_raises(value: str) -> None:
    for string in ("true", "false"):
        whole = parse_completion(f"{LEAD}{invoke('f', parameter('a', value, string))}{END_TOOL_CALLS}", CHAT)
        (call,) = whole.tool_calls
        assert call.arguments.encode().startswith(b'{"a": ')


def test_much_space_between_tags_ends_what_was_begun() -> None:
    # space was read again with every token: 100,000 of it took nine seconds
    value = f"x</{DSML}parameter>" + " " * 5000
    text = f'{LEAD}<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">{value}</{DSML}parameter>\n'
    assert ours(text, CHAT) == ("Hi", None, [("f", json.dumps({"a": value}, ensure_ascii=False))])


@pytest.mark.parametrize(
    "unit",
    [
        ONE,
        f'<{DSML}invoke name="f">',
        f"{TOOL_CALLS}\n{ONE}{END_TOOL_CALLS}\n",
        f"{TOOL_CALLS}\n{ONE}no\n",
        f"<{DSML}a>\n",
    ],
)
def test_a_thought_full_of_markup_is_read_once(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # each block of a thought was tried with all text behind it: 25 KB took minutes
    read: list[int] = []
    tag = markup.read_tag
    monkeypatch.setattr(markup, "read_tag", lambda *a, **k: read.append(1) or tag(*a, **k))
    monkeypatch.setattr(dsml, "read_tag", markup.read_tag)
    counts = []
    for times in (20, 80):
        read.clear()
        parse_completion(unit * times, THINKING)
        counts.append(len(read))
    assert counts[1] < 5 * counts[0]


OBJECT = f'<{DSML}invoke name="f">{{"a": "'


@pytest.mark.parametrize("opening", [CHAT, THINKING])
@pytest.mark.parametrize(
    ("lead", "unit"),
    [
        (OBJECT, "word "),  # an object that is not closed was looked through with every token
        (f"{TOOL_CALLS}\n{OBJECT}", "word "),
        (f"{TOOL_CALLS}\n{ONE}{OBJECT}", "word "),
        (f'<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true"></{DSML}invoke>{OBJECT}', "word "),
        ("", f'<{DSML}invoke name="f">{{"'),
        ("`", f"{ONE}"),
        (f"<{DSML}invoke ", " "),  # a tag had no longest length
        (f"<{DSML}invoke ", "a"),
        ("", "word "),  # a line was copied with every token, for its backticks
        ("", "`"),
        ("  ~~~", "~"),
        (f'{TOOL_CALLS}\n<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="false">', "1, "),
    ],
)
def test_no_text_is_read_again_with_every_token(
    opening: Opening, lead: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the characters that are handed to what looks at them: four times the text makes four times as many."""
    seen = 0

    def counted(function: Any) -> Any:
        def look(text: str, *rest: Any, **named: Any) -> Any:
            nonlocal seen
            seen += len(text)
            return function(text, *rest, **named)

        return look

    for module, name in [
        (completion, "begins"), (dsml, "next_tag"), (dsml, "read_tag"), (dsml, "begins_invoke"), (dsml, "is_json"),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    read = quoting.Quoting.read

    def read_line(self: Any, text: str) -> None:
        nonlocal seen
        seen += len(self._line) + len(text)
        read(self, text)

    monkeypatch.setattr(quoting.Quoting, "read", read_line)
    counts = []
    for size in (8000, 32000):
        seen = 0
        text = (lead + unit * size)[:size]
        streamed([text[n : n + 4] for n in range(0, size, 4)], opening)
        counts.append(seen)
    assert counts[1] < 6 * counts[0]


@pytest.mark.parametrize("line", ["a", "`", "```", "~~~", "  ```", "x ` y", "``` ` "])
@pytest.mark.parametrize("behind", ["", "`", "x", " ", "```", "~"])
def test_a_long_line_quotes_as_a_short_one_does(line: str, behind: str) -> None:
    for much in ("", " ", "z", "`", "``", "~", "~~"):
        for count in (300, 301):
            whole = line + much * count + behind
            once, twice = quoting.Quoting(), quoting.Quoting()
            once._line = whole  # not shortened
            for n in range(0, len(whole), 7):
                twice.read(whole[n : n + 7])
            for text in ("", "`", "\n", "\n```", "\n~~~\n", " x\n`"):
                assert once.after(text) == twice.after(text), (whole[:9], text)
                assert once.starts_line(text) == twice.starts_line(text)


def test_arguments_of_a_cut_call_stay_a_beginning() -> None:
    text = f'{LEAD}<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">rm -rf /home'
    stream = CompletionStream.start(CHAT)
    cut = gather([*stream.push(text), *stream.end(cut=True)], CHAT, as_taught=stream.as_taught)
    assert [call.arguments for call in cut.tool_calls] == ['{"a": "rm -rf /home']


def test_a_closing_tag_that_a_limit_cut_is_no_text() -> None:
    # a client was shown the half of a tag behind its calls
    for length in range(len(END_TOOL_CALLS)):
        stream = CompletionStream.start(CHAT)
        text = f"Hi{BLOCK}"[: len(f"Hi{BLOCK}") - len(END_TOOL_CALLS) + length]
        whole = gather([*stream.push(text), *stream.end(cut=True)], CHAT, as_taught=stream.as_taught)
        assert (whole.content, len(whole.tool_calls), whole.as_taught) == ("Hi", 1, False), text


def test_a_string_streams_while_it_is_written() -> None:
    stream = CompletionStream.start(CHAT)
    stream.push(f'{LEAD}<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">')
    assert [piece.arguments for piece in stream.push("half a val") if hasattr(piece, "arguments")] == ["half a val"]


PARTS = [
    "Hi", TOOL_CALLS[:-1], f"<{DSML}", f"</{DSML}parameter", f'<{DSML}invoke name="g"/>', f"<{DSML}invoke>", "~~~",
    "\n", "\n\n", " ", "`", "```", TOOL_CALLS, END_TOOL_CALLS, f'<{DSML}invoke name="f">', f"</{DSML}invoke>",
    f'<{DSML}parameter name="a" string="true">', f'<{DSML}parameter name="b" string="false">', f"</{DSML}parameter>",
    "</think>", "{", "1", "<", DSML, '"',
]  # fmt: skip


def test_any_mixture_is_read_without_loss_alike_on_every_split() -> None:
    rng = random.Random(15)
    called = 0
    for _ in range(1500):
        text = "".join(rng.choices(PARTS, k=rng.randint(1, 14)))
        opening = rng.choice([CHAT, THINKING])
        whole = parse_completion(text, opening)
        for _ in range(4):
            place = rng.randint(0, len(text))
            assert streamed([text[:place], text[place:]], opening) == whole, text
        assert streamed(list(text), opening) == whole, text
        called += bool(whole.tool_calls)
        for call in whole.tool_calls:
            json.loads(call.arguments)
        if not whole.tool_calls and TOOL_CALLS not in text and "</think>" not in text:
            assert whole.content + (whole.reasoning or "") == text
    assert called > 30
