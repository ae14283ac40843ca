"""`Decoder`: the model's decoding step with static tensors, captured once for each size and replayed.

Legend: B rows, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flagrelease.engine.cache import Cache, LayerCache
from flagrelease.engine.decode.attention import attend
from flagrelease.engine.decode.feed_forward import feed_forward
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.hyper_connection import HyperConnection
from flagrelease.engine.linear import Linear, Rounded
from flagrelease.errors import UsageError

if TYPE_CHECKING:
    from flagrelease.engine.model import Model

SHORTEST_REACH = 4096  # positions that the smallest captured step can see; the others double


class Decoder:
    """One token a row and step, on one device. Results are those of `Model.decode` up to the order of additions."""

    def __init__(self, model: Model, cache: Cache) -> None:
        """For the rows of `cache`, whose counts it keeps up to date.

        Raises:
            UsageError: the model is cut over ranks, whose collectives this step does not have.
        """
        if model.groups.mp > 1:
            raise UsageError("captured decoding runs on one rank; under tensor parallelism use Model.decode")
        self._model, self._cache = model, cache
        rows, place = len(cache.lengths), model.head.device
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=place)
        self.positions = torch.full((rows,), -1, dtype=torch.int64, device=place)
        self._logits = torch.zeros(rows, model.config.vocab_size, device=place)
        self._steps: dict[tuple[int, int], Callable[[], None]] = {}

    def decode(self, token_ids: Sequence[int | None]) -> Tensor:
        """Append one token to every row (None: to this row nothing); float32 logits after it, [B, V].

        The result is overwritten by the next call; a row that got None has one without meaning.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        self._model.check_rows(self._cache, [[] if token is None else [token] for token in token_ids])
        lengths = self._cache.lengths
        positions = [-1 if token is None else lengths[row] for row, token in enumerate(token_ids)]
        self.tokens.copy_(torch.tensor([token or 0 for token in token_ids]))
        self.positions.copy_(torch.tensor(positions))
        for row, token in enumerate(token_ids):
            lengths[row] += token is not None
        self.step(max(row for row, position in enumerate(positions) if position >= 0) + 1, max(positions))
        return self._logits

    def step(self, rows: int, last: int) -> None:
        """Run what `tokens` and `positions` say, of which the first `rows` have tokens and `last` is the largest."""
        size = min(_at_least(rows, 1), len(self.tokens))
        reach = min(_at_least(last + 1, SHORTEST_REACH), self._cache.context)
        if (size, reach) not in self._steps:
            self._steps[size, reach] = self._model.device.capture(lambda: self._run(size, reach))
        self._steps[size, reach]()

    def _run(self, rows: int, reach: int) -> None:
        step = DecodeStep.at(self.tokens[:rows], self.positions[:rows], self._cache.context, reach)
        layers = [layer.view(slice(0, rows)) for layer in self._cache.layers]
        self._logits[:rows] = self._forward(step, layers)

    def _forward(self, step: DecodeStep, layers: Sequence[LayerCache]) -> Tensor:
        model = self._model
        ops = model.ops
        streams = model.embed_tokens(step.tokens)[:, None].repeat(1, model.config.hc_mult, 1)
        for block, cache in zip(model.blocks, layers, strict=True):
            rope = model.rope(block.attn.ratio)
            x, post, comb = self._open(block.attn_hc, streams, block.attn.latents)
            streams = ops.hc_post_parts(attend(ops, block.attn, x, step, cache, rope), streams, post, comb)
            x, post, comb = self._open(block.ffn_hc, streams, block.ffn.w13)
            streams = ops.hc_post_parts(feed_forward(ops, block.ffn, x, step), streams, post, comb)
        return model.read_out(streams)

    def _open(self, hc: HyperConnection, streams: Tensor, into: Linear) -> tuple[Rounded, Tensor, Tensor]:
        """The sub-layer's input, rounded as the linear that it goes `into` takes it; post and comb."""
        x, codes, scales, post, comb = self._model.ops.hc_pre_norm(
            streams, hc.fn, hc.scale, hc.base, hc.iters, hc.eps, hc.norm_eps, hc.norm, into.takes_codes
        )
        return Rounded(x, codes, scales), post, comb


def _at_least(n: int, smallest: int) -> int:
    """The first of smallest, 2 smallest, 4 smallest, .. that is not below n."""
    while smallest < n:
        smallest *= 2
    return smallest
