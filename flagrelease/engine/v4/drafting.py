"""Drafts for a batch, alike for the preview's MTP stage (one token) and DSpark's stages (a block of them).

Both read the target model at each position (its features) and need the token that followed. So the newest position is
read together with the newest token, when the draft is made. Legend: B rows, S positions, N drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.dspark import DsparkStages
from flagrelease.engine.v4.dspark_head import Choose, Drafts
from flagrelease.engine.v4.model import Model
from flagrelease.errors import UsageError


class Drafting(Protocol):
    """On every rank alike.

    Attributes:
        most: tokens that it drafts at once, N.
        cache: what it has read of each row.
        width: of the features of a position: [S, *width].
    """

    most: int
    cache: Cache
    width: tuple[int, ...]

    def read(self, rows: slice, features: Tensor, following: Sequence[Sequence[int]]) -> None:
        """Read the next positions of rows that lie side by side without drafting: pieces of their prompts.

        Args:
            rows: which.
            features: [rows, S, ..], of `Model.advance_watched`, at the positions that come next.
            following: for each row the token that followed each position; fewer than S: the features' end is not read.
        """

    def draft(self, features: Tensor, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """Read the next positions of every row, and guess what comes after the last token that followed.

        Args:
            features: [B, S, ..], as `read` takes them, of all rows.
            following: as `read` takes it; a row with none: its drafts mean nothing.
            choose: called on the leader, once for each draft; None: the likeliest tokens.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """


def open_drafting(model: AnyModel, rows: int, context: int, most: int | None = None) -> Drafting:
    """The drafts that the model's stages make, for `rows` sequences of at most `context` tokens.

    Args:
        model: loaded with its draft stages.
        rows: sequences.
        context: tokens that each may have.
        most: drafts at once; None: as many as the stages make.

    Raises:
        UsageError: the model was loaded without its draft stages, or they make fewer drafts than `most`.
    """
    if not isinstance(model, Model):
        raise UsageError("the engine runs no draft stages of this model's family yet")
    made = model.config.most_drafts
    if most is not None and not 0 < most <= made:
        raise UsageError(f"--speculate {most}: the draft stages of this release guess at most {made} token(s) at once")
    if model.dspark is not None:
        return DsparkDrafting(model, model.dspark, rows, context, most or made)
    return PreviewDrafting(model, rows, context)


class PreviewDrafting:
    """By the preview's MTP stage: one token."""

    def __init__(self, model: Model, rows: int, context: int) -> None:
        """Allocate its cache."""
        self.most, self._model, self.cache = 1, model, model.new_draft_cache(rows, context)
        self.width: tuple[int, ...] = model.features

    def read(self, rows: slice, features: Tensor, following: Sequence[Sequence[int]]) -> None:
        """See `Drafting`."""
        part = self.cache.view(rows)
        self._model.draft(part, features, following)
        self.cache.lengths[rows] = part.lengths

    def draft(self, features: Tensor, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """See `Drafting`."""
        logits, groups = self._model.draft(self.cache, features, following), self._model.groups
        tokens = logits.argmax(-1)
        if choose is not None and groups.is_leader:
            tokens = choose(0, logits)
        groups.share(tokens)
        return Drafts(tokens[:, None], logits[:, None], None)


class DsparkDrafting:
    """By DSpark's stages: a block of tokens."""

    def __init__(self, model: Model, stages: DsparkStages, rows: int, context: int, most: int) -> None:
        """Allocate the stages' rings, a block longer than the window.

        `most`: tokens of a block that are chosen. The stages were trained on whole blocks and always see one.
        """
        self.most, self._model, self._stages = most, model, stages
        self.width: tuple[int, ...] = model.features
        model.cover(context + stages.size)
        ratios, numerics = (0,) * len(stages.blocks), model.numerics
        self.cache = Cache.allocate(model.config, ratios, rows, context, stages.size + 1, numerics, model.head.device)

    def read(self, rows: slice, features: Tensor, following: Sequence[Sequence[int]]) -> None:
        """See `Drafting`."""
        part = self.cache.view(rows)
        self._read(part, features, following)
        self.cache.lengths[rows] = part.lengths

    def draft(self, features: Tensor, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """See `Drafting`."""
        self._read(self.cache, features, following)
        model, stages = self._model, self._stages
        anchors = self._integers([tokens[-1] if tokens else 0 for tokens in following])
        tokens = anchors[:, None].repeat(1, stages.size)
        tokens[:, 1:] = stages.noise
        starts = self._integers(self.cache.lengths)
        streams = model.embed_tokens(tokens)[:, :, None].repeat(1, 1, model.config.hc_mult, 1)
        out = stages.run(model.ops, streams, tokens, starts, self.cache.layers, model.rope(0), model.groups)
        return stages.head.draft(model.ops, out[:, : self.most], model.head, anchors, choose, model.groups)

    def _read(self, cache: Cache, features: Tensor, following: Sequence[Sequence[int]]) -> None:
        model = self._model
        model.check_rows(cache, following)
        counts = [len(tokens) for tokens in following]
        features = features[:, : max(counts)]
        starts, real = self._integers(cache.lengths), self._integers(counts)
        self._stages.read(model.ops, features, starts, real, cache.layers, model.rope(0))
        for row, count in enumerate(counts):
            cache.lengths[row] += count

    def _integers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._model.head.device)
