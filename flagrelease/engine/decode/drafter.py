"""`Drafter`: the MTP stage's step with static tensors, as `Decoder` is the model's.

Legend: B rows, W tokens a row, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flagrelease.engine.decode.feed import Feed
from flagrelease.engine.decode.layers import run_layers
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.transfer import send
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.dspark_head import Choose, Drafts
from flagrelease.engine.v4.model import Model


class Drafter:
    """On every rank alike. Results are those of `Model.draft` up to the order of additions."""

    def __init__(self, model: Model, cache: Cache, streams: Tensor) -> None:
        """`cache`: of `Model.new_draft_cache`. `streams` [W, B, M, H]: where the model's are found at each call.

        Raises:
            UsageError: the model was loaded without the stage.
        """
        self._model, self._mtp, self._cache, self._streams = model, model.require_mtp(), cache, streams
        width, rows = streams.shape[:2]
        self._feed, self._reading = Feed(model, cache, width), Feed(model, cache, 1)
        self._last = torch.zeros(rows, dtype=torch.int64, device=streams.device)
        self._logits = torch.zeros(rows, model.config.vocab_size, dtype=torch.float32, device=streams.device)

    def draft(self, following: Sequence[Sequence[int]]) -> Tensor:
        """`following[b]`: the tokens that followed the first positions in `streams[:, b]`.

        Returns:
            float32 [B, V], for the token after the last of them; overwritten by the next call.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        last = torch.tensor([max(len(tokens) - 1, 0) for tokens in following], dtype=torch.int64)
        self._last.copy_(send(last, self._last.device))
        self._feed.advance(following, self._run)
        return self._logits

    def guess(self, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """As `BlockDrafter.guess`. Ranks that do not lead are told of a draft with the step that holds it."""
        logits = self.draft(following)
        tokens = choose(0, logits) if choose is not None and self._model.groups.is_leader else logits.argmax(-1)
        return Drafts(tokens[:, None], logits[:, None], None)

    def follow(self, latest: Tensor, rows: Sequence[int]) -> None:
        """Read the first position of each of `rows`, which its token in `latest` followed. Nothing is drafted.

        Args:
            latest: int64 [B] on the device, where its tokens may still be on their way.
            rows: those that go on.

        Raises:
            UsageError: a row would pass the cache's context.
        """
        self._reading.follow(latest, rows, self._read)

    def forget(self) -> None:
        """Let go of the captured steps."""
        self._feed.forget()
        self._reading.forget()

    def _read(self, step: DecodeStep) -> None:
        self._through_block(step)

    def _through_block(self, step: DecodeStep) -> Tensor:
        """The block's streams behind a step, [W * B, M, H]. Its keys are in the cache then."""
        rows = len(step.tokens) // step.width
        streams = self._streams[: step.width, :rows].flatten(0, 1)
        model = self._model
        mixed = self._mtp.mix(model.ops, streams, model.embed_tokens(step.tokens))
        return run_layers(model, [self._mtp.block], mixed, step, [self._cache.layers[0].view(slice(0, rows))])

    def _run(self, step: DecodeStep) -> None:
        rows, out, model = len(step.tokens) // step.width, self._through_block(step), self._model
        kept = out.view(step.width, rows, *out.shape[1:])[self._last[:rows], torch.arange(rows, device=out.device)]
        self._logits[:rows] = model.to_logits(self._mtp.final.collapse(model.ops, kept))
