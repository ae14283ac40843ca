"""`Model`: sequences of token ids in, logits and tokens out, in steps of `Network`.

Legend: B rows, S tokens of a step, T tokens of a sequence, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.sampling import Draws, Sampler, Sampling, choose
from flagrelease.engine.token_ids import token_list
from flagrelease.engine.v4.block import Block
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.dspark import DsparkStages
from flagrelease.engine.v4.hyper_connection import HyperHead
from flagrelease.engine.v4.mtp import MtpStage
from flagrelease.engine.v4.network import Network
from flagrelease.engine.v4.step import Step, plan_step
from flagrelease.engine.weights import Weights
from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.v4.config import ModelConfig

if TYPE_CHECKING:
    from flagrelease.engine.token_ids import TokenIds

DEFAULT_CHUNK = 512  # tokens a step appends to a row at most; longer prompts take several steps


@dataclass(slots=True)
class Model(Network):
    """A loaded model on one device, or this rank's part of one.

    Wherever a method takes the token ids of one sequence, they may be a list, a tensor or a numpy array: [T] integers.
    Under tensor parallelism every rank calls the same methods with the same arguments and gets the same results.
    `chunk`: tokens that a step appends to a row at most.
    """

    chunk: int = DEFAULT_CHUNK

    @classmethod
    def build(
        cls,
        weights: Weights,
        config: ModelConfig,
        numerics: Numerics,
        ops: Operators,
        groups: Groups,
        device: Device,
        *,
        mtp: bool,
    ) -> Model:
        """Take every module's tensors from `weights`. `mtp`: the draft stages too.

        Raises:
            UsageError: there are no draft stages that the engine runs; nothing was read.
        """
        if mtp and not config.is_dspark and config.n_mtp_layers != 1:
            raise UsageError(
                f"drafts come from one MTP stage or from DSpark's; this release has {config.n_mtp_layers} MTP stages"
            )
        blocks = tuple(
            Block.load(
                weights.at(f"layers.{layer}"), config, config.compress_ratios[layer], numerics, groups,
                hashed=layer < config.num_hash_layers,
            ).arranged(ops)
            for layer in range(config.num_hidden_layers)
        )  # fmt: skip
        return cls(
            config=config,
            numerics=numerics,
            ops=ops,
            groups=groups,
            device=device,
            embed=weights.plain("embed.weight"),
            head=weights.plain("head.weight"),
            blocks=blocks,
            final=HyperHead.load(weights, config),
            mtp=MtpStage.load(weights.at("mtp.0"), config, numerics, groups).arranged(ops)
            if mtp and not config.is_dspark
            else None,
            dspark=DsparkStages.load(weights.at("mtp"), config, numerics, groups).arranged(ops)
            if mtp and config.is_dspark
            else None,
        )

    # What users call.

    def logits(self, token_ids: TokenIds) -> Tensor:
        """Logits after every token of one sequence: float32 [T, V] on the CPU. Nothing is kept."""
        token_ids = token_list(token_ids)
        cache = self.new_cache(rows=1, context=len(token_ids))
        return torch.cat([logits.cpu() for logits in self.prefill_each(cache, 0, token_ids)])

    def new_cache(self, rows: int, context: int) -> Cache:
        """Empty caches for `rows` sequences of at most `context` tokens.

        Raises:
            UsageError: the model does not go so far.
            ResourceError: the device has no room.
        """
        wanted = self.cache_bytes(rows, context, self.chunk)
        free, _ = self.device.memory()
        if wanted > free:
            raise ResourceError(
                f"caches for {rows} sequences of {context} tokens take {wanted / 1e9:.1f} GB; the device has "
                f"{free / 1e9:.1f} GB left: ask for fewer sequences or a shorter context"
            )
        self.cover(context)
        return self._allocate(rows, context, self.chunk, self._place)

    def cache_bytes(self, rows: int, context: int, chunk: int) -> int:
        """Bytes that caches for `rows` sequences take whose steps append at most `chunk` tokens; nothing is allocated.

        Raises:
            UsageError: the model does not go so far.
        """
        return self._allocate(rows, context, chunk, torch.device("meta")).nbytes

    def _allocate(self, rows: int, context: int, chunk: int, place: torch.device) -> Cache:
        ratios = tuple(self.config.compress_ratios[: self.config.num_hidden_layers])
        chunk, drafts = min(chunk, context), self.most_drafts
        return Cache.allocate(self.config, ratios, rows, context, chunk, self.numerics, place, drafts)

    def prefill(self, cache: Cache, row: int, token_ids: TokenIds) -> Tensor:
        """Append a prompt, or more of one, to one row; return the logits after its last token, float32 [V]."""
        part, token_ids = cache.view(row), token_list(token_ids)
        logits = self.extend(part, [token_ids])
        cache.lengths[row] = part.lengths[0]
        return logits[0]

    def prefill_each(self, cache: Cache, row: int, token_ids: TokenIds) -> Iterator[Tensor]:
        """Like `prefill`, but the logits after every token: float32 [S, V], a chunk of the sequence at a time."""
        part, token_ids = cache.view(row), token_list(token_ids)
        for logits, _ in self._steps(part, [token_ids], every=True):
            cache.lengths[row] = part.lengths[0]
            yield logits[0]

    def generate(self, token_ids: TokenIds, sampling: Sampling) -> list[int]:
        """Continue one sequence, up to `sampling.max_tokens` or an EOS, which is not returned.

        Stop strings need a tokenizer, and batches a scheduler: see `scheduler.generate_all`.
        """
        token_ids = token_list(token_ids)
        longest = self.config.max_position_embeddings - len(token_ids)
        limit = longest if sampling.max_tokens is None else sampling.max_tokens
        cache = self.new_cache(rows=1, context=len(token_ids) + limit)
        logits, sampler, made = self.prefill(cache, 0, token_ids), Sampler(sampling), list[int]()
        while len(made) < limit:
            draws = Draws.of([sampler.at(len(made))], self._place)
            token = self.groups.from_leader(choose(self.ops, logits[None], draws)[0])
            if token == self.config.eos_token_id:
                break
            made.append(token)
            if len(made) < limit:
                logits = self.decode(cache, [token])[0]
        return made

    def decode(self, cache: Cache, token_ids: Sequence[int | None]) -> Tensor:
        """Append one token to every row (None: to this row nothing); return the logits after it, float32 [B, V].

        The result of a row that got None means nothing.
        """
        return self.extend(cache, [[] if token is None else [token] for token in token_ids])

    def extend(self, cache: Cache, token_ids: Sequence[TokenIds]) -> Tensor:
        """Append `token_ids[b]` to row b, any number of tokens each; return the logits after each row's last.

        Returns:
            float32 [B, V]; a row that got no tokens has a result without meaning.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        after = torch.zeros(len(token_ids), self.config.vocab_size, dtype=torch.float32, device=self._place)
        for logits, rows in self._steps(cache, [token_list(each) for each in token_ids], every=False):
            after[rows] = logits[rows, 0]
        return after

    def advance(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append at most `cache.chunk` tokens to every row in one step; return the streams after each, [B, S, M, H].

        `read_out` makes logits of them, `draft` looks one token further. A row with fewer than S tokens has streams
        without meaning at its end.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        return self.advance_watched(cache, token_ids)[0]

    def advance_watched(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Like `advance`; and what draft stages read of each position, [B, S, ..], see `drafting`.

        That is the streams for the preview's stage, and for DSpark's [B, S, targets H], the pooled streams of the
        target layers.
        """
        self.check_rows(cache, token_ids)
        assert max(map(len, token_ids)) <= cache.chunk, "one step appends at most a chunk"
        streams, features = self.watched(self._plan(cache, token_ids), cache.layers)
        for row, tokens in enumerate(token_ids):
            cache.lengths[row] += len(tokens)
        return streams, features

    def new_draft_cache(self, rows: int, context: int) -> Cache:
        """An empty cache of the MTP stage's own layer.

        Raises:
            UsageError: the model was loaded without the stage.
        """
        self.require_mtp()
        ratios, chunk, drafts = tuple(self.config.compress_ratios[-1:]), min(self.chunk, context), self.most_drafts
        return Cache.allocate(self.config, ratios, rows, context, chunk, self.numerics, self._place, drafts)

    def draft(
        self, cache: Cache, streams: Tensor, following: Sequence[Sequence[int]], *, every: bool = False
    ) -> Tensor:
        """The MTP stage's logits for the token after each row's last following one, float32 [B, V].

        Args:
            cache: of `new_draft_cache`, extended by the step.
            streams: [B, S, M, H] of the main model, at the positions that come next in `cache`.
            following: the token that followed each position, at most S a row (fewer: the streams' end means nothing).
            every: logits for the tokens after each of them: [B, S, V].

        Raises:
            UsageError: as `advance`; the model was loaded without the stage.
        """
        mtp = self.require_mtp()
        self.check_rows(cache, following)
        step = self._plan(cache, following)
        streams = streams[:, : step.tokens.shape[1]]
        hidden = mtp.forward(
            self.ops, streams, self.embed_tokens(step.tokens), step, cache.layers[0], self.rope(0), self.groups
        )
        for row, tokens in enumerate(following):
            cache.lengths[row] += len(tokens)
        return self.to_logits(hidden if every else hidden[step.row[:, 0], step.last])

    def draft_logits(self, token_ids: TokenIds) -> Tensor:
        """The MTP stage's logits: float32 [T - 1, V], row t for the token after `token_ids[t + 1]`.

        Raises:
            UsageError: the model was loaded without it, or there is no token to draft from.
        """
        token_ids = token_list(token_ids)
        if len(token_ids) < 2:
            raise UsageError("drafting needs two tokens: one to continue from and the one that followed it")
        cache, drafts = self.new_cache(1, len(token_ids)), self.new_draft_cache(1, len(token_ids))
        rows = []
        for start in range(0, len(token_ids) - 1, cache.chunk):
            past = min(start + cache.chunk, len(token_ids) - 1)
            streams = self.advance(cache, [token_ids[start:past]])
            following = [token_ids[start + 1 : past + 1]]
            rows.append(self.draft(drafts, streams, following, every=True)[0].cpu())
        return torch.cat(rows)

    # From sequences to steps.

    def _steps(
        self, cache: Cache, token_ids: Sequence[Sequence[int]], *, every: bool
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Run steps of at most `chunk` tokens a row.

        Yields logits [B, S or 1, V] and the rows whose last token the step held.
        """
        self.check_rows(cache, token_ids)
        for start in range(0, max(map(len, token_ids)), cache.chunk):
            part = [tokens[start : start + cache.chunk] for tokens in token_ids]
            logits = self._forward(self._plan(cache, part), cache.layers, every=every)
            for row, tokens in enumerate(part):
                cache.lengths[row] += len(tokens)
            ended = [row for row, tokens in enumerate(token_ids) if start < len(tokens) <= start + cache.chunk]
            yield logits, ended

    def _plan(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> Step:
        return plan_step(self.config, token_ids, cache.lengths, cache.context, cache.chunk, self._place, cache.drafts)

    def check_rows(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> None:
        """Refuse tokens that the model or a row has no place for.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        if not any(token_ids):
            raise UsageError("no tokens: a sequence needs at least one")
        for row, tokens in enumerate(token_ids):
            for token in tokens:
                if not 0 <= token < self.config.vocab_size:
                    raise UsageError(f"token id {token}: the vocabulary has {self.config.vocab_size}")
            cache.check_room(row, len(tokens))
