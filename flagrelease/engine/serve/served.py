"""What a server serves."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from flagrelease.engine.constraints.compiler import Compiler
from flagrelease.engine.serve.requests.refusals import ParameterError
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError
from flagrelease.model.v4.efforts import Efforts, Mode
from flagrelease.model.v4.encoded import EncodedChat

T = TypeVar("T")
_SHORT = 4096  # characters that are tokenised in about a millisecond
_FEW = 16  # texts, likewise
_NICENESS = 10  # steps of the model come first where cores are few


def _give_way() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


_ASIDE = ThreadPoolExecutor(1, "aside", initializer=_give_way)


async def aside(work: Callable[[], T]) -> T:
    """Do long work beside the event loop, one at a time, in the order in which it came."""
    return await asyncio.get_running_loop().run_in_executor(_ASIDE, work)


@dataclass(frozen=True, slots=True)
class Served:
    """A model under its public name. `mode` is that of chats that do not say one; `efforts` are the model's."""

    service: Service
    tokenizer: Tokenizer
    name: str
    mode: Mode
    efforts: Efforts
    constraints: Compiler = field(init=False)

    def __post_init__(self) -> None:
        """Its constraints are compiled for its tokenizer."""
        object.__setattr__(self, "constraints", Compiler(self.tokenizer))

    def check_model(self, name: str) -> None:
        """Refuse another model than this one.

        Raises:
            ParameterError: with HTTP's 404.
        """
        if name != self.name:
            raise ParameterError(
                f"model {name!r} is not here: this server has {self.name!r}", "model", "model_not_found", 404
            )

    async def encode(self, text: str | EncodedChat) -> list[int]:
        """Token ids of one prompt, as `encode_each`."""
        (tokens,) = await self.encode_each([text])
        return tokens

    async def encode_each(self, texts: Sequence[str | EncodedChat]) -> list[list[int]]:
        """Token ids of prompts. What cannot fit is not tokenised; what is long is tokenised beside the event loop.

        Raises:
            UsageError: a text is longer than the longest tokens that the context has room for.
        """
        context, longest = self.service.context, self.tokenizer.longest
        sizes = [len(text) if isinstance(text, str) else sum(len(piece) for piece, _ in text.pieces) for text in texts]
        most = max(sizes)
        if most > context * longest:
            raise UsageError(
                f"a text of {most:,} characters: a token has at most {longest} bytes, the context {context} tokens"
            )
        if sum(sizes) <= _SHORT and len(texts) <= _FEW:
            return [self.tokenizer.encode(text) for text in texts]
        return await aside(lambda: [self.tokenizer.encode(text) for text in texts])
