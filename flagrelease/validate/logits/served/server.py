"""`ServedRelease`: a release and the server that is said to serve it, as far as scoring prompts goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flagrelease.engine.text import Tokenizer
from flagrelease.model.families import read_config
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.client import EndpointClient
from flagrelease.validate.endpoint.queue import ask_each
from flagrelease.validate.endpoint.replies import ServedModel, Unsupported
from flagrelease.validate.logits.served.kept import ServedFolder
from flagrelease.validate.logits.served.names import TokenNames
from flagrelease.validate.logits.served.ways import Prompt, Scored, Way, find_way, score_each


class ServedRelease:
    """The server scores prompts; the release in `folder` says what its tokens are."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        """Read the release's config and, if it has one, its tokenizer. Nothing is asked yet."""
        config, _ = read_config(folder / "config.json")
        self.folder, self.endpoint, self.config = folder, endpoint, config
        self._tokenizer = Tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
        self._names = None if self._tokenizer is None else TokenNames(self._tokenizer, config.vocab_size)

    @property
    def where(self) -> str:
        """For the report."""
        return f"{self.endpoint.model} at {self.endpoint.shown}"

    def prompt(self, number: int, tokens: Sequence[int]) -> Prompt:
        """Token ids with their text."""
        decode = (lambda ids: "") if self._tokenizer is None else self._tokenizer.decode
        return Prompt(number, tuple(tokens), decode(tokens), decode(tokens[1:]))

    def context(self) -> int | None:
        """The most tokens that the server takes, if it tells.

        Raises:
            NetworkError: it cannot be asked.
        """

        async def models(client: EndpointClient, _: None) -> tuple[ServedModel, ...] | Unsupported:
            return await client.models()

        ((_, listed),) = ask_each(self.endpoint, [None], models)
        known = () if isinstance(listed, Unsupported) else listed
        return next((model.context for model in known if model.id == self.endpoint.model), None)

    def way(self, kept: ServedFolder, example: Prompt, most: int) -> Way | str:
        """How prompts are scored: as before if this run was begun before, else the best way that works on `example`."""
        if (known := kept.way()) is not None:
            return known
        found = find_way(self.endpoint, example, self._names, most)
        if isinstance(found, Way):
            kept.set_way(found)
        return found

    def score(self, way: Way, prompts: Sequence[Prompt]) -> Iterator[Scored]:
        """As `ways.score_each`."""
        return score_each(self.endpoint, way, prompts, self._names)
