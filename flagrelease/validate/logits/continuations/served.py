"""`EndpointTexts`: a server continues texts and scores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagrelease.errors import NetworkError
from flagrelease.validate.endpoint.asks import CompletionAsk
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.queue import ask_each
from flagrelease.validate.endpoint.replies import CompletionReply, Unsupported
from flagrelease.validate.logits.continuations.texts import Rated, Texts
from flagrelease.validate.logits.served.server import ServedRelease
from flagrelease.validate.logits.served.ways import Way


class EndpointTexts:
    """Of a server whose `way` to score prompts is known."""

    def __init__(self, server: ServedRelease, way: Way) -> None:
        """Nothing is asked yet."""
        self._server, self._way = server, way

    def write(self, prompts: Texts, seeds: Mapping[str, int], tokens: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """As `TextModel` says.

        Raises:
            NetworkError: the server cannot be asked, or does not tell the ids of the tokens that it wrote.
        """

        async def ask(client: EndpointClient, name: str) -> CompletionReply | Unsupported:
            prompt = tuple(prompts[name])
            return await client.complete(
                CompletionAsk(prompt, tokens, temperature=1.0, seed=seeds[name], token_ids=True)
            )

        for name, reply in ask_each(self._server.endpoint, list(prompts), ask):
            if isinstance(reply, Unsupported) or reply.token_ids is None:
                reason = reply.reason if isinstance(reply, Unsupported) else "the reply has no token_ids"
                raise NetworkError(
                    f"{self._server.endpoint.shown}: does not tell the ids of the tokens that it writes ({reason}): "
                    "record the continuations with the bundled engine"
                )
            yield name, reply.token_ids

    def rate(self, texts: Texts) -> Iterator[Rated]:
        """As `TextModel` says; texts that the server reads as other tokens have a reason in place of numbers."""
        names = list(texts)
        prompts = [self._server.prompt(number, texts[name]) for number, name in enumerate(names)]
        for scored in self._server.score(self._way, prompts):
            name, scores = names[scored.prompt.number], scored.scores
            if isinstance(scores, str):
                yield Rated(name, scores, seconds=scored.seconds)
            else:
                yield Rated(name, tuple(scores.listed.target.tolist()), scores.first, scored.seconds)
