"""The prompts of a file: read, checked and turned into tokens, all of them before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flagrelease.engine.generate.jsonl import read_lines, shown
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError
from flagrelease.model.chats import encode_messages
from flagrelease.model.turns import Message
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import Opening
from flagrelease.model.v4.messages import check_messages

Prompt = str | list[Message]


class Request(NamedTuple):
    """Tokens to continue, and how."""

    tokens: list[int]
    sampling: Sampling


def read_requests(
    path: Path, tokenizer: Tokenizer, effort: Effort | None, sampling: Sampling, context: int, system: str | None = None
) -> list[Request]:
    """What a JSONL file of strings and lists of messages asks for.

    Args:
        path: the file; "-" is standard input.
        tokenizer: the release's.
        effort: how much the model thinks in the chat that each prompt is put into; None: no chat, text is continued.
        sampling: of the first prompt. The n-th, from 0, has the seed plus n: the same prompt twice gets two answers.
        context: tokens that a prompt and its answer may have together.
        system: what the model is told in front of each string; messages have their own.

    Raises:
        UsageError: the file cannot be read or has no prompt, or a line is no prompt; names the line.
    """
    requests: list[Request] = []
    for number, document in read_lines(path):
        try:
            prompt = document if isinstance(document, str) else check_messages(document)
            tokens, _ = encode_prompt(tokenizer, prompt, effort, system)
            require_room(tokens, sampling, context)
        except UsageError as error:
            raise UsageError(f"{shown(path)}: line {number}: {error}") from error
        seed = None if sampling.seed is None else sampling.seed + len(requests)
        requests.append(Request(tokens, replace(sampling, seed=seed)))
    if not requests:
        raise UsageError(f"{shown(path)}: no prompt in it")
    return requests


def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, effort: Effort | None, system: str | None = None
) -> tuple[list[int], Opening | None]:
    """The tokens of a prompt, put into a chat for `effort`, and how its answer begins; without an effort as it is.

    Raises:
        UsageError: messages without a chat, messages that the model's format has no place for, text that is not
            Unicode.
    """
    if effort is None:
        if not isinstance(prompt, str):
            raise UsageError("mode raw continues text, not messages")
        return tokenizer.encode(prompt), None
    if isinstance(prompt, str):
        told: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        prompt = [*told, {"role": "user", "content": prompt}]
    chat = encode_messages(prompt, effort)
    return tokenizer.encode(chat), chat.opening


def require_room(tokens: Sequence[int], sampling: Sampling, context: int) -> None:
    """Refuse a prompt that leaves no room for its answer.

    Raises:
        UsageError: an empty prompt, or more tokens than the context.
    """
    if not tokens:
        raise UsageError("an empty prompt")
    if len(tokens) + (sampling.max_tokens or 0) > context:
        wanted = sampling.max_tokens or 0
        raise UsageError(f"a prompt of {len(tokens)} tokens and {wanted} more for the answer: the context is {context}")
