"""`Decoder`: the model's decoding step with static tensors, captured once for each size and replayed.

Legend: B rows, W tokens a row, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flagrelease.engine.decode.feed import Feed
from flagrelease.engine.decode.layers import run_layers
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model


class Decoder:
    """A few tokens a row and step, on every rank alike. Results are the plain pass's up to the order of additions."""

    def __init__(self, model: Model, cache: Cache, width: int = 1) -> None:
        """For the rows of `cache`, whose counts it keeps up to date; `width`: the most tokens of a row in a step.

        With a width of 2 or more, `features` [W, B, ..] are what the model's draft stages read of the last step.
        """
        self._model, self._cache, self._width = model, cache, width
        rows, place, config = len(cache.lengths), model.head.device, model.config
        self._feed = Feed(model, cache, width)
        self.tokens, self.positions = self._feed.tokens, self._feed.positions
        self._logits = torch.zeros(width, rows, config.vocab_size, dtype=torch.float32, device=place)
        kept = (width if width > 1 else 0, rows, *model.features)
        self.features = torch.zeros(kept, dtype=model.numerics.dtype, device=place)

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """Append one token to every row (None: to this row nothing); float32 logits after it, [B, V].

        The result is overwritten by the next call; a row that got None has one without meaning.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        return self.advance([[] if token is None else [token] for token in token_ids])[:, 0]

    def advance(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append up to W tokens to every row; float32 logits after each, [B, the most that one got, V]. As `decode`."""
        width = self._feed.advance(token_ids, self._run)
        return self._logits[:width].transpose(0, 1)

    def follow(self, latest: Tensor, rows: Sequence[int]) -> Tensor:
        """Append to each of `rows` its token in `latest`, int64 [B] on the device; logits as of `decode`, [B, 1, V].

        Raises:
            UsageError: a row would pass the cache's context.
        """
        self._feed.follow(latest, rows, self._run)
        return self._logits[:1].transpose(0, 1)

    def step(self, rows: int, last: int) -> None:
        """Run what `tokens` and `positions` say, of which the first `rows` have tokens and `last` is the largest."""
        self._feed.step(1, rows, last, self._run)

    def forget(self) -> None:
        """Let go of the captured steps."""
        self._feed.forget()

    def _run(self, step: DecodeStep) -> None:
        rows = len(step.tokens) // step.width
        layers = [layer.view(slice(0, rows)) for layer in self._cache.layers]
        model = self._model
        streams = model.embed_tokens(step.tokens)[:, None].repeat(1, model.config.hc_mult, 1)
        features = self.features[: step.width, :rows]

        def keep(layer: int, streams: Tensor) -> None:
            if self._width > 1:
                model.keep_features(layer, streams.view(step.width, rows, *streams.shape[1:]), features)

        streams = run_layers(model, model.blocks, streams, step, layers, keep)
        self._logits[: step.width, :rows] = model.read_out(streams).view(step.width, rows, -1)
