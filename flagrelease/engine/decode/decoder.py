"""`Decoder`: the model's decoding step with static tensors, captured once for each size and replayed.

Legend: B rows, W tokens a row, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flagrelease.engine.block import Block
from flagrelease.engine.cache import Cache, LayerCache
from flagrelease.engine.decode.attention import attend
from flagrelease.engine.decode.feed import Feed
from flagrelease.engine.decode.feed_forward import feed_forward
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.hyper_connection import HyperConnection
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear, Rounded
from flagrelease.engine.model import Model
from flagrelease.engine.parallel import Groups
from flagrelease.engine.rope import RopeTable


class Decoder:
    """A few tokens a row and step, on every rank alike. Results are the plain pass's up to the order of additions."""

    def __init__(self, model: Model, cache: Cache, width: int = 1) -> None:
        """For the rows of `cache`, whose counts it keeps up to date; `width`: the most tokens of a row in a step.

        With a width of 2 or more, `streams` [W, B, M, H] are those of the last step.
        """
        self._model, self._cache, self._width = model, cache, width
        rows, place, config = len(cache.lengths), model.head.device, model.config
        self._feed = Feed(model, cache, width)
        self.tokens, self.positions = self._feed.tokens, self._feed.positions
        self._logits = torch.zeros(width, rows, config.vocab_size, device=place)
        kept = (width if width > 1 else 0, rows, config.hc_mult, config.hidden_size)
        self.streams = torch.zeros(kept, dtype=model.numerics.dtype, device=place)

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
        for block, cache in zip(model.blocks, layers, strict=True):
            streams = decode_block(model.ops, block, streams, step, cache, model.rope(block.attn.ratio), model.groups)
        if self._width > 1:
            self.streams[: step.width, :rows] = streams.view(step.width, rows, *streams.shape[1:])
        self._logits[: step.width, :rows] = model.read_out(streams).view(step.width, rows, -1)


def decode_block(
    ops: Operators, block: Block, streams: Tensor, step: DecodeStep, cache: LayerCache, rope: RopeTable, groups: Groups
) -> Tensor:
    """Streams [W * B, M, H] -> [W * B, M, H], the same on every rank."""
    x, post, comb = _open(ops, block.attn_hc, streams, block.attn.latents)
    parts = attend(ops, block.attn, x, step, cache, rope, groups)
    if groups.mp > 1:
        parts = groups.sum_output(_added(ops, parts))
    streams = ops.hc_post_parts(parts, streams, post, comb)
    x, post, comb = _open(ops, block.ffn_hc, streams, block.ffn.w13)
    parts = feed_forward(ops, block.ffn, x, step)
    if groups.mp > 1:  # the last part is the shared expert's, which every rank has whole: it counts once
        parts = groups.all_sum(_added(ops, parts if groups.is_leader else parts[:-1]))
    return ops.hc_post_parts(parts, streams, post, comb)


def _added(ops: Operators, parts: Tensor) -> Tensor:
    """A rank's parts [S, B, H] as the ranks add them up: FP32 [1, B, H].

    In FP32, as the plain pass does: `hc_post_parts` rounds the sum over ranks, once. Adding here before the ranks do
    costs a launch and saves S - 1 of S bytes on the links.
    """
    return ops.round_parts(parts, torch.float32, False)[0][None]


def _open(ops: Operators, hc: HyperConnection, streams: Tensor, into: Linear) -> tuple[Rounded, Tensor, Tensor]:
    """The sub-layer's input, rounded as the linear that it goes `into` takes it; post and comb."""
    x, codes, scales, post, comb = ops.hc_pre_norm(
        streams, hc.fn, hc.scale, hc.base, hc.iters, hc.eps, hc.norm_eps, hc.norm, into.takes_codes
    )
    return Rounded(x, codes, scales), post, comb
