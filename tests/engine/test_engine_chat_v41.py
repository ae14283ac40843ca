"""DeepSeek-V4.1's chats: texts written by hand from the fact sheet's rules, and DeepSeek's own encoder and parser."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import deepseek_recipe as recipe
import pytest
from test_engine_chat_oracle import ARGUMENTS, TOOL, WORDS

from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError
from flagrelease.model.spelling import OF_V4, OF_V41, Spelling
from flagrelease.model.turns import EOS, Message
from flagrelease.model.v4.completion import Completion, CompletionStream, gather, parse_completion
from flagrelease.model.v4.encoded import EncodedChat, Opening
from flagrelease.model.v41.chat import IMAGE, SYSTEM, encode_messages
from flagrelease.model.v41.efforts import effort_of, efforts_of

EFFORTS = efforts_of()
CHAT, THINKING = EFFORTS.of("chat"), EFFORTS.of("thinking")
GOLDEN = Path(__file__).parents[1] / "golden" / "encoding-v41"
TOOLS = [{"type": "function", "function": TOOL}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
X: list[Message] = [{"role": "user", "content": "x"}]
MARK = "\x00"  # of an image in theirs, which would take a quoted placeholder for one
SYSTEM_TURN = "<｜begin▁of▁sentence｜><｜System｜>"


# --- texts from the rules of the facts (B.4), written and checked by hand


@pytest.mark.parametrize("case", sorted(path.stem for path in GOLDEN.glob("*.json")))
def test_golden(case: str) -> None:
    given = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))
    effort = CHAT if given["effort"] is None else effort_of(given["effort"])
    encoded = encode_messages(given["messages"], effort, given.get("tools", ()))
    assert encoded.text == (GOLDEN / f"{case}.txt").read_text(encoding="utf-8").removesuffix("\n")


def test_the_first_system_turn_says_the_number() -> None:
    said = "Reasoning Effort: 60 (range 1-100, the higher the value, the more thorough the reasoning)\n\n"
    assert encode_messages(X, effort_of(60)).text == f"{SYSTEM_TURN}{said}<｜User｜>x<｜Assistant｜><think>"
    assert encode_messages(X, CHAT).text == "<｜begin▁of▁sentence｜><｜User｜>x<｜Assistant｜></think>"


# --- efforts


@pytest.mark.parametrize("name", ["minimal", "low", "medium", "high", "xhigh", "max", None])
def test_names_are_the_numbers_of_deepseeks_requests(name: str | None) -> None:
    request: dict[str, Any] = {"model": "DeepSeek-V4.1-Flash", "messages": X}
    request |= {"thinking": {"type": "enabled"}} if name is None else {"reasoning_effort": name}
    conversation = recipe.ChatCompletionRequest(request).convert(recipe.ConversionOptions()).conversation
    mode: Any = name or "thinking"
    expected = recipe.DeepseekV41Encoding().render_conversation(conversation).prompt
    assert encode_messages(X, EFFORTS.of(mode)).text == expected


def test_names_mean_other_numbers_to_other_providers() -> None:
    """Facts B.4: DeepSeek low 50, high 75 (default), max 100; vLLM low 25, high 50 (default), xhigh 75, max 100."""
    names: list[Any] = ["thinking", "low", "high", "xhigh", "max"]
    numbers = {of: [int(efforts_of(of).of(name).name) for name in names] for of in ("deepseek", "vllm")}
    assert numbers == {"deepseek": [75, 50, 75, 75, 100], "vllm": [50, 25, 50, 75, 100]}
    with pytest.raises(UsageError, match="chat mode 'minimal': known are chat, thinking, low, high, xhigh, max"):
        efforts_of("vllm").of("minimal")
    with pytest.raises(UsageError, match="efforts of 'sglang': known are those of deepseek, vllm"):
        efforts_of("sglang")


@pytest.mark.parametrize("number", [0, 101, -1, True])
def test_an_effort_is_a_number_from_1_to_100(number: int) -> None:
    with pytest.raises(UsageError, match="a whole number from 1 to 100"):
        effort_of(number)
    assert effort_of(1).preamble != effort_of(100).preamble


# --- DeepSeek's encoder


def conversation(rng: random.Random) -> list[Message]:
    """Of every role: system turns anywhere, images of users and tools, calls and their results in any order."""
    text = lambda: "".join(rng.choices([*WORDS, IMAGE, SYSTEM], k=rng.randint(0, 3)))  # noqa: E731

    def content() -> Any:
        if rng.random() < 0.7:
            return text()
        parts = [{"type": "text", "text": text()}, PICTURE, {"type": "text", "text": "between"}, PICTURE]
        return parts[: rng.randint(1, 4)]

    messages: list[Message] = [{"role": "system", "content": content()}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 6)):
        kind = rng.choice(["user", "user", "assistant", "calls", "latest_reminder", "system"])
        if kind == "latest_reminder" and messages and messages[-1]["role"] == kind:
            continue  # a test below says how these are read differently
        if kind in ("user", "system"):
            messages.append({"role": kind, "content": content() or "x"})
        elif kind == "latest_reminder":
            messages.append({"role": kind, "content": text() or "x"})
        else:
            message: Message = {"role": "assistant", "content": text(), "reasoning": text()}
            messages.append(message)
            if kind == "calls":
                ids = ["a", "b", "c"][: rng.randint(1, 3)]
                message["tool_calls"] = [
                    {"id": each, "function": {"name": "f", "arguments": rng.choice(ARGUMENTS)}} for each in ids
                ]
                results = [{"role": "tool", "tool_call_id": each, "content": content()} for each in ids]
                messages += rng.sample(results, len(results))
    messages = messages or list(X)
    asked = any(one["role"] == "user" for one in messages)  # theirs shows no thought in an answer to nobody
    if asked and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1] and rng.random() < 0.5:
        messages[-1]["prefix"] = True
    return messages


def theirs(messages: list[Message], effort: str | None, *, thinks: bool, tools: bool) -> recipe.Conversation:
    made: list[recipe.Message] = []
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}]
        text = "\n\n".join(part.get("text", MARK) for part in parts)
        images = [recipe.DataUrlImageSource(one["image_url"]["url"]) for one in parts if "image_url" in one]
        if message["role"] == "assistant":
            calls = [
                recipe.ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
                for call in message.get("tool_calls", ())
            ]
            made.append(
                recipe.AssistantMessage(text, message["reasoning"], calls or None, message.get("prefix", False))
            )
        elif message["role"] == "tool":
            made.append(recipe.ToolMessage(text, message["tool_call_id"], images, image_token=MARK))
        elif message["role"] == "latest_reminder":
            made.append(recipe.LatestReminderMessage(text))
        else:
            kind = recipe.SystemMessage if message["role"] == "system" else recipe.UserMessage
            made.append(kind(text, images, image_token=MARK))
    definitions = [recipe.ToolDefinition(TOOL["name"], TOOL["description"], TOOL["parameters"])] if tools else None
    return recipe.Conversation(made, thinking_mode=thinks, reasoning_effort=effort, tools=definitions)


def told(prompt: recipe.RenderedPrompt) -> list[tuple[str, bool]]:
    """The pieces of a prompt as `EncodedChat` has them, images with our token."""
    pieces, place = [], 0
    for begin, end in prompt.special_ranges:
        pieces += [(prompt.prompt[place:begin], False), (prompt.prompt[begin:end], True)]
        place = end
    whole = [*pieces, (prompt.prompt[place:], False)]
    return [(IMAGE if text == MARK else text, special) for text, special in whole if text]


@pytest.mark.parametrize("mode", ["chat", "thinking", "low", "max"])
@pytest.mark.parametrize("tools", [False, True])
def test_prompts_are_those_of_deepseeks_encoder(mode: Any, tools: bool) -> None:
    """Piece by piece: a special token that a message quotes is text in both."""
    encoder = recipe.DeepseekV41Encoding()
    rng = random.Random(f"{mode} {tools}")
    for _ in range(150):
        messages = conversation(rng)
        ours = encode_messages(messages, EFFORTS.of(mode), TOOLS if tools else ())
        effort = None if mode in ("chat", "thinking") else mode
        expected = encoder.render_conversation(theirs(messages, effort, thinks=mode != "chat", tools=tools))
        shown = json.dumps(messages)[:2000]
        assert list(ours.pieces) == told(expected), shown
        assert len(ours.images) == len(expected.image_sources) == ours.pieces.count((IMAGE, True)), shown


def test_reminders_beside_each_other_all_stay() -> None:
    """DeepSeek's package keeps the first of them in V4.1, and all in V4; encoding.py keeps all."""
    reminders = [{"role": "latest_reminder", "content": each} for each in ("1", "2")]
    ours = encode_messages([*X, *reminders], CHAT).text
    assert "<｜latest_reminder｜>1<｜latest_reminder｜>2<｜Assistant｜>" in ours
    made = [recipe.UserMessage("x"), *(recipe.LatestReminderMessage(each) for each in ("1", "2"))]
    theirs = recipe.DeepseekV41Encoding().render_conversation(recipe.Conversation(made, thinking_mode=False)).prompt
    assert theirs == ours.replace("<｜latest_reminder｜>2", "")


def test_tools_of_a_later_system_turn_keep_earlier_thoughts() -> None:
    """As encoding.py: tools anywhere disable the dropping of old reasoning."""
    messages: list[Message] = [
        *X, {"role": "assistant", "content": "a", "reasoning": "kept"}, {"role": "system", "tools": TOOLS}, *X,
    ]  # fmt: skip
    text = encode_messages(messages, THINKING).text
    assert "<think>kept</think>a" in text
    assert "<｜System｜>\n\n## Tools\n\n" in text


def test_images_come_in_the_order_of_their_placeholders() -> None:
    """Results go in the order of the calls, and take their images along."""
    a, b = ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{name}"}} for name in ("AA", "BB"))
    calls = [{"id": each, "function": {"name": "f", "arguments": "{}"}} for each in ("1", "2")]
    messages: list[Message] = [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "2", "content": [b]}, {"role": "tool", "tool_call_id": "1", "content": [a]},
    ]  # fmt: skip
    encoded = encode_messages(messages, CHAT)
    assert encoded.images == (a, b)
    assert encoded.text.count(f"<tool_result>{IMAGE}</tool_result>") == 2


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "input_audio"}]}, "neither text nor an image_url"),
        ({"role": "assistant", "content": [PICTURE]}, "an? assistant message has a part that is not text"),
        ({"role": "tester", "content": "x"}, "the role 'tester'"),
    ],
)
def test_what_a_turn_cannot_hold_is_refused(message: Message, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        encode_messages([message], CHAT)


def test_the_engine_reads_no_images(v41_release: Path) -> None:
    shown = encode_messages([{"role": "user", "content": [PICTURE]}], CHAT)
    with pytest.raises(UsageError, match="the chat shows an image, and the bundled engine reads text only"):
        Tokenizer(v41_release).encode(shown)
    told = encode_messages([{"role": "user", "content": IMAGE}], CHAT)
    assert 500 not in Tokenizer(v41_release).encode(told), "the id of the placeholder; a quoted one is text"


# --- reading answers


def answer(message: Message, *, thinks: bool) -> tuple[EncodedChat, str]:
    """The prompt that asks, and what the model wrote if `message` is its answer."""
    effort = THINKING if thinks else CHAT
    asked = encode_messages(X, effort, TOOLS)
    whole = encode_messages([*X, message], effort, TOOLS, finished=True)
    assert whole.text.startswith(asked.text)
    return asked, whole.text.removeprefix(asked.text)


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_what_was_rendered_is_read_back_as_it_was(thinks: bool, size: int) -> None:
    arguments = ['{"a": "x</think>"}', '{"b": [1, {"c": null}], "d": "</｜DSML｜ "}', "{}"]
    message = {
        "role": "assistant", "content": "Let me look.", **({"reasoning": "think <｜DSML｜ calls> "} if thinks else {}),
        "tool_calls": [{"id": str(n), "function": {"name": "f", "arguments": one}} for n, one in enumerate(arguments)],
    }  # fmt: skip
    asked, text = answer(message, thinks=thinks)
    stream = CompletionStream.start(asked.opening)
    said = [piece for at in range(0, len(text), size) for piece in stream.push(text[at : at + size])]
    found = gather([*said, *stream.end()], asked.opening, as_taught=stream.as_taught)
    assert (found.content, found.reasoning) == ("Let me look.", message.get("reasoning"))
    assert [json.loads(call.arguments) for call in found.tool_calls] == [json.loads(one) for one in arguments]
    assert stream.as_taught  # a call without arguments holds a blank line in V4.1


def block(spelling: Spelling, body: str = "") -> str:
    opening, closing = spelling.opening(spelling.parameter), spelling.closing(spelling.parameter)
    body = body or f'{opening} name="a" string="true">x{closing}\n'
    invoke = f'{spelling.opening(spelling.invoke)} name="f">\n{body}{spelling.end_invoke}\n'
    return f"\n\n{spelling.block}\n{invoke}{spelling.end_block}{EOS}"


@pytest.mark.parametrize(("taught", "written"), [(OF_V41, OF_V4), (OF_V4, OF_V41)])
def test_the_other_familys_markup_is_read_and_not_as_taught(taught: Spelling, written: Spelling) -> None:
    opening = Opening("content", thinks=False, tools=True, spelling=taught)
    own, other = (parse_completion(f"Hi{block(one)}", opening) for one in (taught, written))
    assert own.as_taught
    assert not other.as_taught
    assert own.tool_calls == other.tool_calls
    assert json.loads(own.tool_calls[0].arguments) == {"a": "x"}


def test_an_object_in_a_call_is_waited_for_up_to_its_own_end() -> None:
    opening = Opening("content", thinks=False, tools=True, spelling=OF_V41)
    text = block(OF_V41, '{"a": "' + "y" * 700 + '"}\n')
    stream = CompletionStream.start(opening)
    said = [piece for letter in text for piece in stream.push(letter)]
    found: Completion = gather([*said, *stream.end()], opening, as_taught=stream.as_taught)
    assert json.loads(found.tool_calls[0].arguments) == {"a": "y" * 700}


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize(
    "body", ["", '<｜DSML｜ parameter name="n" string="false">[1, 2.50]</｜DSML｜ parameter>\n', "\n"]
)
def test_answers_are_taken_apart_as_by_deepseeks_parser(thinks: bool, body: str) -> None:
    text = ("thought</think>" if thinks else "") + f"said{block(OF_V41, body)}".removesuffix(EOS)
    request = recipe.ChatCompletionRequest(
        {"model": "DeepSeek-V4.1-Flash", "messages": X, "tools": TOOLS,
         "thinking": {"type": "enabled" if thinks else "disabled"}}
    )  # fmt: skip
    generator = recipe.ChatCompletionRequest.chunk_generator(request.convert(recipe.ConversionOptions()), "id", "m")
    stage = recipe.ThinkingInitialStage.ReasoningStart if thinks else None
    processor = recipe.StreamProcessor(generator, recipe.ParsingOptions(thinking_initial_stage=stage))
    theirs = recipe.ChatCompletionResponse("id", "m", 0, 0, 0)
    for chunk in [*processor.push(recipe.InferenceChunk.text(text, 1)),
                  *processor.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))]:  # fmt: skip
        theirs.accumulate(chunk)  # type: ignore[arg-type]
    message = json.loads(theirs.to_json())["choices"][0]["message"]
    found = parse_completion(text, encode_messages(X, THINKING if thinks else CHAT, TOOLS).opening)
    assert (found.content, found.reasoning) == (message["content"], message.get("reasoning_content"))
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    assert [(call.name, json.loads(call.arguments)) for call in found.tool_calls] == calls
