"""Our server on loopback with an actor for a model, who does what a good model does, or one thing badly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from on_loopback import on_loopback
from scripted_service import NAME, ScriptedService, ScriptedStream, scripted_app

from flagrelease.engine.batch.scheduler import Request
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.serve.service import Stream
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.chat import DSML, END_THINK, THINK

_CALL = (
    f'<{DSML}tool_calls>\n<{DSML}invoke name="get_weather">\n<{DSML}parameter name="city" string="true">Oslo'
    f"</{DSML}parameter>\n</{DSML}invoke>\n</{DSML}tool_calls>"
)
_ANSWER = ("The ", "harbour ", "wakes ", "slowly ", "under ", "a ", "grey ", "sky.")


class Actor(ScriptedService):
    """`faults`: what it does badly: "deaf to seeds", "deaf to stops", "forgetful"."""

    def __init__(self, tokenizer: Tokenizer, faults: Sequence[str]) -> None:
        super().__init__(tokenizer)
        self.faults, self.answers = faults, 0

    def open(self, asked: Sequence[Request]) -> list[Stream]:
        for prompt, sampling in asked:
            self._scheduler.check(prompt, sampling)
        return [cast(Stream, self._answer(self.tokenizer.decode(prompt), sampling)) for prompt, sampling in asked]

    def _answer(self, prompt: str, sampling: Sampling) -> ScriptedStream:
        self.answers += 1
        pieces = list(self._pieces(prompt, sampling))
        if sampling.stop and "deaf to stops" not in self.faults:
            whole = "".join(pieces)
            pieces = [whole[: whole.index(sampling.stop[0])]]
        most = sampling.max_tokens or 100
        return ScriptedStream(pieces[:most], sampling, "length" if len(pieces) > most else "stop")

    def _pieces(self, prompt: str, sampling: Sampling) -> Sequence[str]:
        if sampling.constraint is not None or ("get_weather" in prompt and "<tool_result>" not in prompt):
            return (_CALL,)
        if prompt.endswith(THINK):
            return ("Compare ", "the ", "tenths.", END_THINK, "9.8")
        if sampling.temperature and "deaf to seeds" not in self.faults:
            return (f"Drawn by {sampling.seed}.",)
        if "forgetful" in self.faults:
            return (f"Answer {self.answers}", *_ANSWER)
        return _ANSWER


@contextmanager
def acting(folder: Path, *faults: str) -> Iterator[str]:
    """Serve with the tokenizer in `folder`; gives the address."""
    tokenizer = Tokenizer(folder)
    app: Any = scripted_app(tokenizer, Actor(tokenizer, faults))
    with on_loopback(app) as address:
        yield f"{address}/v1"


__all__ = ["NAME", "acting"]
