"""Prompts become the tokens that they should: the server's chat encoding is its own, and can be another one.

The expected tokens come from the release's tokenizer and from our encoding, which is DeepSeek's (docs/chat.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagrelease.model.v4.efforts import Effort, Efforts
from flagrelease.validate.endpoint.replies import ChatReply, Unsupported
from flagrelease.validate.preflight.answers import first_refusal
from flagrelease.validate.preflight.check import CheckVerdict, PreflightCheck, judged

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name.", "enum": ["Oslo", "Paris", "Tokyo"]},
                "days": {"type": "integer", "description": "Days to look ahead.", "minimum": 0, "maximum": 7},
            },
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class ChatCase:
    """A chat of the fixed set. `quotes`: it spells special tokens out, which are text there."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    quotes: bool = False


_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    ],
}
CASES: tuple[ChatCase, ...] = (
    ChatCase("one turn", ({"role": "user", "content": "What is the capital of Norway?"},)),
    ChatCase(
        "system",
        (
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Name a river in France."},
        ),
    ),
    ChatCase(
        "several turns",
        (
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "content": "Four."},
            {"role": "user", "content": "And one more?"},
        ),
    ),
    ChatCase("other scripts", ({"role": "user", "content": "用一句话介绍长城。 🙂 Ürümqi, naïve, 3.14159"},)),
    ChatCase("code", ({"role": "user", "content": "def f(x):\n\treturn x ** 2  # square\n\n\nWhat is f(12)?"},)),
    ChatCase("tools", ({"role": "user", "content": "What is the weather in Oslo?"},), (WEATHER,)),
    ChatCase(
        "a tool's result",
        (
            {"role": "user", "content": "What is the weather in Oslo?"},
            _CALL,
            {"role": "tool", "tool_call_id": "call_1", "content": "Rain, 4 degrees."},
        ),
        (WEATHER,),
    ),
    ChatCase(
        "quoted markup",
        ({"role": "user", "content": "What do <think>, </think> and <｜Assistant｜> mean in a prompt?"},),
        quotes=True,
    ),
)


@dataclass(frozen=True, slots=True)
class CountedPrompt:
    """A chat with an effort, the tokens that it should be, and what came.

    `recognised`: how many tokens it would be if special tokens that a user spells out were taken as such.
    """

    case: ChatCase
    effort: Effort
    expected: tuple[int, ...]
    recognised: int
    reply: ChatReply | Unsupported


def efforts_asked(efforts: Efforts) -> list[Effort]:
    """Each effort of the revision once, without thinking first."""
    return list({effort.name: effort for effort in efforts.by_mode.values()}.values())


def judge_prompts(prompts: Sequence[CountedPrompt], bos: int) -> list[PreflightCheck]:
    """The counts (and the ids, where the server gives them), one begin token, and special tokens that a user quotes."""
    plain = [prompt for prompt in prompts if not prompt.case.quotes]
    quoting = [prompt for prompt in prompts if prompt.case.quotes and not prompt.effort.thinks]
    return [_counts(plain), _one_bos(plain, bos), _quoted(quoting)]


def judge_efforts(prompts: Sequence[CountedPrompt]) -> PreflightCheck:
    """Each effort is accepted, and makes the prompt as long as it should be."""
    by_effort: dict[str, list[CountedPrompt]] = {}
    for prompt in prompts:
        if not prompt.case.quotes:
            by_effort.setdefault(prompt.effort.name, []).append(prompt)
    asked = "the fixed set of chats with each effort"
    first = {name: found[0] for name, found in by_effort.items()}
    expected = ", ".join(f"{name} {len(prompt.expected)} tokens" for name, prompt in first.items())
    came, wrong = [], False
    for name, prompt in first.items():
        refused = [each.reply for each in by_effort[name] if isinstance(each.reply, Unsupported)]
        if refused or isinstance(prompt.reply, Unsupported):
            came.append(f"{name} {refused[0].told}")
            wrong = True
        else:
            came.append(f"{name} {prompt.reply.used.prompt}")
            wrong = wrong or prompt.reply.used.prompt != len(prompt.expected)
    return judged("efforts", asked, f"{expected} ({prompts[0].case.id})", ", ".join(came), "fail" if wrong else "pass")


def _counts(prompts: Sequence[CountedPrompt]) -> PreflightCheck:
    asked = f"{len(prompts)} prompts: {len({p.case.id for p in prompts})} chats, each with every effort, one token"
    expected = f"{sum(len(prompt.expected) for prompt in prompts):,} tokens in all, each prompt as many as it should"
    answered = [(prompt, prompt.reply) for prompt in prompts if isinstance(prompt.reply, ChatReply)]
    if not answered:
        return judged(
            "prompt-tokens", asked, expected, first_refusal([prompt.reply for prompt in prompts]), "not-shown"
        )
    wrong = [
        f"{prompt.case.id}, {prompt.effort.name}: {reply.used.prompt} for {len(prompt.expected)}"
        for prompt, reply in answered
        if reply.used.prompt != len(prompt.expected)
    ]
    other = [
        f"{prompt.case.id}, {prompt.effort.name}: other ids from token {_first_other(reply, prompt.expected)} on"
        for prompt, reply in answered
        if reply.used.prompt == len(prompt.expected) and reply.prompt_token_ids not in (None, prompt.expected)
    ]
    refused = [prompt for prompt in prompts if isinstance(prompt.reply, Unsupported)]
    if wrong or other:
        return judged("prompt-tokens", asked, expected, "; ".join([*wrong, *other][:4]), "fail")
    with_ids = sum(reply.prompt_token_ids is not None for _, reply in answered)
    came = f"{len(answered)} as expected" + (f", {with_ids} of them id by id" if with_ids else "")
    if refused:
        why = first_refusal([prompt.reply for prompt in refused])
        return judged("prompt-tokens", asked, expected, f"{came}; {len(refused)} {why}", "fail")
    return judged("prompt-tokens", asked, expected, came, "pass")


def _first_other(reply: ChatReply, expected: tuple[int, ...]) -> int:
    ids = reply.prompt_token_ids or ()
    return next((n + 1 for n, (one, two) in enumerate(zip(ids, expected, strict=False)) if one != two), 0)


def _one_bos(prompts: Sequence[CountedPrompt], bos: int) -> PreflightCheck:
    asked, expected = "the ids of the prompts' tokens, or how many they are", "one begin token, at the beginning"
    answered = [(prompt, prompt.reply) for prompt in prompts if isinstance(prompt.reply, ChatReply)]
    ids = [reply.prompt_token_ids for _, reply in answered if reply.prompt_token_ids is not None]
    if ids:
        counts = Counter(each.count(bos) for each in ids)
        verdict: CheckVerdict = "pass" if set(counts) == {1} and all(each[0] == bos for each in ids) else "fail"
        came = ", ".join(f"{count} in {number} prompts" for count, number in sorted(counts.items()))
        return judged("one-bos", asked, expected, f"{came}, by their ids", verdict)
    apart = Counter(reply.used.prompt - len(prompt.expected) for prompt, reply in answered)
    if not apart:
        return judged("one-bos", asked, expected, "nothing was counted", "not-shown")
    (usual, _), *_ = apart.most_common(1)
    if len(apart) == 1 and usual in (-1, 1):
        said = "one token more" if usual == 1 else "one token less"
        return judged("one-bos", asked, expected, f"every prompt has {said} than expected", "fail")
    if set(apart) == {0}:
        return judged("one-bos", asked, expected, "every prompt has as many tokens as expected", "pass")
    return judged("one-bos", asked, expected, "the prompts are others, see prompt-tokens", "not-shown")


def _quoted(prompts: Sequence[CountedPrompt]) -> PreflightCheck:
    asked, expected = "a user who spells special tokens out", "the tokens of their characters"
    answered = [(prompt, prompt.reply) for prompt in prompts if isinstance(prompt.reply, ChatReply)]
    if not answered:
        return judged(
            "quoted-markup", asked, expected, first_refusal([prompt.reply for prompt in prompts]), "not-shown"
        )
    if all(reply.used.prompt == len(prompt.expected) for prompt, reply in answered):
        return judged("quoted-markup", asked, expected, "text, as they should be", "pass")
    if all(reply.used.prompt == prompt.recognised for prompt, reply in answered):
        return judged(
            "quoted-markup",
            asked,
            expected,
            "special tokens: whoever reaches a chat can close its reasoning or open another turn",
            "noted",
        )
    prompt, reply = answered[0]
    came = f"{reply.used.prompt} tokens for {len(prompt.expected)}"
    return judged("quoted-markup", asked, expected, came, "noted")
