"""What is asked: the bundled prompts, from `prompts.json`. Other prompts make another set, which is never compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from flagrelease.model.chats import encode_messages
from flagrelease.model.turns import Message
from flagrelease.model.v4.efforts import Effort
from flagrelease.model.v4.encoded import EncodedChat
from flagrelease.records.rules import WISHES, BehaviourRules, Wish


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: a chat that the assistant continues, with the tools it may call, and what the answer should be."""

    id: str
    wish: Wish
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]

    def encode(self, effort: Effort) -> EncodedChat:
        """As the model reads it."""
        return encode_messages(self.messages, effort, self.tools)


@cache
def bundled_prompts() -> tuple[Prompt, ...]:
    """All of them, in the file's order."""
    document = json.loads(_content())
    return tuple(
        Prompt(
            each["id"],
            each["wish"],
            tuple(each["messages"]),
            tuple(document["tools"][name] for name in each.get("tools", ())),
        )
        for each in document["prompts"]
    )


def prompts_of(rules: BehaviourRules) -> list[Prompt]:
    """Those that the rules ask for."""
    asked = [wish for wish in WISHES if wish in rules.wishes]
    kinds = [[prompt for prompt in bundled_prompts() if prompt.wish == wish] for wish in asked]
    return [prompt for prompts in kinds for prompt in prompts[: rules.prompts]]


@cache
def prompts_sha256() -> str:
    """Of the file: two models that were asked under the same one were asked the same."""
    return hashlib.sha256(_content()).hexdigest()


def _content() -> bytes:
    return resources.files("flagrelease.validate.behaviour").joinpath("prompts.json").read_bytes()
