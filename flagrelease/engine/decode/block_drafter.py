"""`BlockDrafter`: the drafts of DSpark's stages with static tensors, as `Decoder` runs the model's steps.

Legend: B rows, W tokens that a step appends to a row at most, g block size, N drafts, F features of a position,
H hidden, V vocabulary, v this rank's slice of it, R Markov rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from flagrelease.engine.decode.branches import Branches
from flagrelease.engine.decode.layers import run_layers
from flagrelease.engine.decode.recordings import Recordings
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.kernels.layout import doubled
from flagrelease.engine.linear import project, project_parts
from flagrelease.engine.transfer import send
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.dspark import DsparkStages
from flagrelease.engine.v4.dspark_head import Choose, Drafts
from flagrelease.engine.v4.model import Model


class BlockDrafter:
    """On every rank alike. Results are those of `DsparkDrafting` up to the order of additions.

    A draft is one recording if its tokens are the likeliest. Tokens that are drawn are chosen between recordings: one
    up to the logits of the whole block, and one for each place, which adds the bias of the token before it.
    """

    def __init__(self, model: Model, stages: DsparkStages, cache: Cache, features: Tensor, most: int) -> None:
        """Allocate what stays where it is.

        Args:
            model: the target.
            stages: its own.
            cache: their rings, a block longer than the window.
            features: [W, B, F], where those of the target's last step are found at each call.
            most: N, tokens of a block that are guessed.
        """
        self._model, self._stages, self._cache, self._features = model, stages, cache, features
        rows, config, place = features.shape[1], model.config, features.device
        self._rows, self._most = rows, most
        ring = cache.layers[0].kv.shape[1] - 1
        assert ring >= stages.window + stages.size, "a block's keys would overwrite those that it sees"
        self._numbers = torch.zeros(3, rows, dtype=torch.int64, device=place)  # see `_send`
        self._tokens = torch.zeros(most + 1, rows, dtype=torch.int64, device=place)  # the newest one, and drafts
        self._base = torch.zeros(most, rows, len(model.head), dtype=torch.float32, device=place)
        self._logits = torch.zeros(most, rows, config.vocab_size, dtype=torch.float32, device=place)
        self._confidence = torch.zeros(most, rows, dtype=torch.float32, device=place)
        rank = stages.head.markov_w1.shape[1]
        # What the confidence head reads: the collapsed streams, and the Markov embedding of the token before.
        self._seen = torch.zeros(most, rows, config.hidden_size + rank, dtype=features.dtype, device=place)
        self._branches = Branches(model.ops, model.device)
        self._recordings = Recordings(model)

    def guess(self, following: Sequence[Sequence[int]], choose: Choose | None) -> Drafts:
        """Read positions of the last step, and guess what comes after the last token that followed.

        Args:
            following: for each row the tokens that followed its first positions in the features; none: its drafts mean
                nothing.
            choose: called on the leader, once for each draft; None: the likeliest tokens.

        Returns:
            What is overwritten by the next call.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        rows = self._send(following)
        if choose is None:
            self._recordings.run((rows,), partial(self._guess_likeliest, rows))
        else:
            self._recordings.run((rows, "block"), partial(self._run_block, rows))
            for place in range(self._most):
                self._recordings.run((rows, place), partial(self._add_bias, rows, place))
                self._take(place, choose)
            self._recordings.run((rows, "end"), partial(self._rate, rows))
        return Drafts(self._tokens[1:].T, self._logits.transpose(0, 1), self._confidence.T)

    def follow(self, latest: Tensor, rows: Sequence[int]) -> None:
        """As `Drafter.follow`. What stages keep of a position does not depend on the token that followed it."""
        going = set(rows)
        count = self._send([[0] if row in going else [] for row in range(len(latest))])
        self._recordings.run((count, "read"), partial(self._read, count, 1))

    def forget(self) -> None:
        """Let go of what was captured."""
        self._recordings.forget()

    def _send(self, following: Sequence[Sequence[int]]) -> int:
        """What a draft is given: positions read before, positions to be read, and the newest token of each row.

        Returns how many rows the work has.
        """
        self._model.check_rows(self._cache, following)
        lengths, counts = self._cache.lengths, [len(tokens) for tokens in following]
        numbers = [lengths, counts, [tokens[-1] if tokens else 0 for tokens in following]]
        self._numbers.copy_(send(torch.tensor(numbers, dtype=torch.int64), self._numbers.device))
        for row, count in enumerate(counts):
            lengths[row] += count
        used = max(row for row, count in enumerate(counts) if count) + 1
        return min(doubled(1, used), self._rows)

    def _take(self, place: int, choose: Choose) -> None:
        """The tokens of a place, chosen on the leader."""
        groups, chosen = self._model.groups, self._tokens[place + 1]
        if groups.is_leader:
            chosen.copy_(choose(place, self._logits[place]))
        groups.share(chosen)

    # What is recorded.

    def _guess_likeliest(self, rows: int) -> None:
        self._run_block(rows)
        for place in range(self._most):
            self._add_bias(rows, place)
            torch.argmax(self._logits[place, :rows], -1, out=self._tokens[place + 1, :rows])
        self._rate(rows)

    def _run_block(self, rows: int) -> None:
        """The positions read, and the base logits of every draft."""
        self._read(rows)
        model, stages, (starts, counts, newest) = self._model, self._stages, self._numbers[:, :rows]
        self._tokens[0, :rows] = newest
        there, first = counts > 0, starts + counts
        place = torch.arange(stages.size, device=first.device)[:, None]
        tokens = torch.where(place == 0, newest, stages.noise).flatten()
        positions = torch.where(there, first + place, -1).flatten()
        last = torch.where(there, first + stages.size - 1, -1).repeat(stages.size)
        # Of the rings alone the tokens see a window; of the block all.
        step = DecodeStep.at(tokens, positions, self._cache.context, 0, stages.size, self._branches)
        step = replace(step, newest=last, ahead=stages.size)
        rings = [ring.view(slice(0, rows)) for ring in self._cache.layers]
        streams = model.embed_tokens(tokens)[:, None].repeat(1, model.config.hc_mult, 1)
        streams = run_layers(model, stages.blocks, streams, step, rings)[: self._most * rows]
        x = stages.head.final.sum(model.ops, streams)
        base = model.ops.linear(stages.head.final.normed(model.ops, x), model.head, torch.float32)
        self._seen[:, :rows, : x.shape[-1]] = x.view(self._most, rows, -1)
        self._base[:, :rows] = base.view(self._most, rows, -1)

    def _read(self, rows: int, width: int | None = None) -> None:
        """The keys of the accepted positions, at most `width` a row (None: W), in every stage's ring."""
        model, stages, (starts, counts, _) = self._model, self._stages, self._numbers[:, :rows]
        place = torch.arange(width or len(self._features), device=starts.device)[:, None]
        positions = torch.where(place < counts, starts + place, -1).flatten()
        (x,) = project(model.ops, self._features[:width, :rows].flatten(0, 1), stages.main_proj)
        x = model.ops.rms_norm(x, stages.main_norm, stages.eps)
        rope = model.rope(0)
        for block, ring in zip(stages.blocks, self._cache.layers, strict=True):
            attn = block.attn
            parts = project_parts(model.ops, attn.latents.round(model.ops, x), attn.latents)  # of which the key is used
            model.ops.latents(
                parts, attn.q_norm, attn.kv_norm, attn.eps, rope.cos, rope.sin, positions, ring.kv[:rows], 0, False,
                attn.quantise_kv,
            )  # fmt: skip

    def _add_bias(self, rows: int, place: int) -> None:
        before, logits = self._stages.head.biased(
            self._model.ops, self._base[place, :rows], self._tokens[place, :rows], self._model.groups
        )
        self._seen[place, :rows, -before.shape[-1] :] = before
        self._logits[place, :rows] = logits

    def _rate(self, rows: int) -> None:
        self._confidence[:, :rows] = self._stages.head.rated(self._model.ops, self._seen[:, :rows])
