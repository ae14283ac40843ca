"""Sends the prompts in every circumstance, into a journal that survives a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from flagrelease.durable.log import AppendLog
from flagrelease.errors import NetworkError
from flagrelease.model.v4.efforts import Effort
from flagrelease.records.rules import InvarianceRules
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.asks import ChatAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.queue import ask_each
from flagrelease.validate.endpoint.replies import ChatReply, StreamedReply, Unsupported
from flagrelease.validate.invariance.difference import Said
from flagrelease.validate.invariance.prompts import InvariancePrompt
from flagrelease.validate.invariance.said import said_of
from flagrelease.validate.invariance.stage import AGAIN, ALONE, ONCE_MORE, STREAMED, Heard, at_once

Watch = Callable[[int, int], None]  # answers so far, of how many


@dataclass(frozen=True, slots=True)
class _Circumstance:
    """How the prompts are sent, one pass through all of them."""

    name: str
    endpoint: Endpoint
    concurrency: int = 1
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class InvarianceAsker:
    """Asks the main server and its variants; `effort` is the model's without thinking."""

    endpoint: Endpoint
    variants: Mapping[str, Endpoint]
    effort: Effort
    prompts: Sequence[InvariancePrompt]
    rules: InvarianceRules

    def ask(self, journal: Path, binding: Mapping[str, str], watch: Watch) -> Heard:
        """Send what the journal has no answer to. `binding`: what the answers depend on, by names for the user.

        Raises:
            NetworkError: a server does not answer, or refuses a plain chat.
            ResourceError: the journal was begun for something else, or is in use.
        """
        passes = self._passes()
        content = json.dumps([(each.id, each.content, self.rules.max_tokens, self.rules.top) for each in self.prompts])
        depends = {**binding, "set of prompts": hashlib.sha256(content.encode()).hexdigest()}
        with AppendLog(journal, "answers in every circumstance", 1, TypeAdapter(Said), depends) as log:
            done = {(said.circumstance, said.prompt): said for said in log.records}
            total = len(passes) * len(self.prompts)
            watch(len(done), total)
            for each in passes:
                missing = [prompt for prompt in self.prompts if (each.name, prompt.id) not in done]
                for said in self._answers(each, missing):
                    log.append(said, sync=True)
                    done[said.circumstance, said.prompt] = said
                    watch(len(done), total)
        spoken = {each.name: [done[each.name, prompt.id] for prompt in self.prompts] for each in passes}
        varied = {name: spoken.pop(_variant(name, endpoint)) for name, endpoint in self.variants.items()}
        return Heard(
            server=_shown(self.endpoint),
            variants={name: _shown(endpoint) for name, endpoint in self.variants.items()},
            said=spoken,
            varied=varied,
        )

    def _passes(self) -> list[_Circumstance]:
        main = self.endpoint
        return [
            *(_Circumstance(name, main) for name in (ALONE, AGAIN, ONCE_MORE)),
            _Circumstance(STREAMED, main, streamed=True),
            *(_Circumstance(at_once(count), main, count) for count in self.rules.concurrency),
            *(_Circumstance(_variant(name, endpoint), endpoint) for name, endpoint in self.variants.items()),
        ]

    def _answers(self, how: _Circumstance, prompts: Sequence[InvariancePrompt]) -> Iterator[Said]:
        call = EndpointClient.stream if how.streamed else EndpointClient.chat

        async def ask(client: EndpointClient, prompt: InvariancePrompt) -> Any:
            chat = ChatAsk(
                ({"role": "user", "content": prompt.content},),
                self.rules.max_tokens,
                effort=self.effort,
                logprobs=self.rules.top,
            )
            reply = await call(client, chat)
            if isinstance(reply, Unsupported) and isinstance(reply.reply, ChatReply):
                return reply.reply  # it answered, without log-probabilities
            if isinstance(reply, Unsupported):
                return await call(client, replace(chat, logprobs=None))
            return reply

        endpoint = replace(how.endpoint, concurrency=how.concurrency)
        for prompt, reply in ask_each(endpoint, prompts, ask):
            if isinstance(reply, Unsupported):
                raise NetworkError(f"{endpoint.shown}: refuses a chat of one turn ({reply.reason})")
            whole = reply.reply if isinstance(reply, StreamedReply) else reply
            yield said_of(how.name, prompt.id, whole)


def _variant(name: str, endpoint: Endpoint) -> str:
    """With its address: another server under the same name is asked anew."""
    return f"variant {name}: {_shown(endpoint)}"


def _shown(endpoint: Endpoint) -> str:
    return f"{endpoint.model} at {endpoint.shown}"
