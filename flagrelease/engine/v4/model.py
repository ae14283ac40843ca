"""DeepSeek-V4, from token ids to logits.

Legend: B rows, S tokens of a step, T tokens of a sequence, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.sampling import Draws, Sampler, Sampling, choose
from flagrelease.engine.v4.block import Block
from flagrelease.engine.v4.cache import Cache, LayerCache
from flagrelease.engine.v4.hyper_connection import HyperHead
from flagrelease.engine.v4.mtp import MtpStage
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.v4.step import Step, plan_step
from flagrelease.engine.weights import Weights
from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.v4.config import ModelConfig

DEFAULT_CHUNK = 512  # tokens a step appends to a row at most; longer prompts take several steps


@dataclass(slots=True)
class Model:
    """A loaded model on one device, or this rank's part of one.

    Under tensor parallelism every rank calls the same methods with the same arguments and gets the same results.
    """

    config: ModelConfig
    numerics: Numerics
    ops: Operators
    groups: Groups
    device: Device
    embed: Tensor
    head: Tensor
    blocks: tuple[Block, ...]
    final: HyperHead
    mtp: MtpStage | None
    chunk: int = DEFAULT_CHUNK
    _ropes: dict[bool, RopeTable] = field(default_factory=dict)

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
        """Take every module's tensors from `weights`. `mtp`: the draft stage too."""
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
            mtp=MtpStage.load(weights.at("mtp.0"), config, numerics, groups).arranged(ops) if mtp else None,
        )

    # What users call.

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits after every token of one sequence: float32 [T, V] on the CPU. Nothing is kept."""
        cache = self.new_cache(rows=1, context=len(token_ids))
        return torch.cat([logits.cpu() for logits in self.prefill_each(cache, 0, token_ids)])

    def new_cache(self, rows: int, context: int) -> Cache:
        """Empty caches for `rows` sequences of at most `context` tokens.

        Raises:
            UsageError: the model does not go so far.
            ResourceError: the device has no room.
        """
        ratios = tuple(self.config.compress_ratios[: self.config.num_hidden_layers])
        chunk = min(self.chunk, context)
        dtype = self.numerics.dtype
        wanted = Cache.allocate(self.config, ratios, rows, context, chunk, dtype, torch.device("meta")).nbytes
        free, _ = self.device.memory()
        if wanted > free:
            raise ResourceError(
                f"caches for {rows} sequences of {context} tokens take {wanted / 1e9:.1f} GB; the device has "
                f"{free / 1e9:.1f} GB left: ask for fewer sequences or a shorter context"
            )
        self._cover(context)
        return Cache.allocate(self.config, ratios, rows, context, chunk, dtype, self._place)

    def prefill(self, cache: Cache, row: int, token_ids: Sequence[int]) -> Tensor:
        """Append a prompt, or more of one, to one row; return the logits after its last token, float32 [V]."""
        part = cache.view(row)
        logits = self.extend(part, [token_ids])
        cache.lengths[row] = part.lengths[0]
        return logits[0]

    def prefill_each(self, cache: Cache, row: int, token_ids: Sequence[int]) -> Iterator[Tensor]:
        """Like `prefill`, but the logits after every token: float32 [S, V], a chunk of the sequence at a time."""
        part = cache.view(row)
        for logits, _ in self._steps(part, [token_ids], every=True):
            cache.lengths[row] = part.lengths[0]
            yield logits[0]

    def generate(self, token_ids: Sequence[int], sampling: Sampling) -> list[int]:
        """Continue one sequence, up to `sampling.max_tokens` or an EOS, which is not returned.

        Stop strings need a tokenizer, and batches a scheduler: see `scheduler.generate_all`.
        """
        longest = self.config.max_position_embeddings - len(token_ids)
        limit = longest if sampling.max_tokens is None else sampling.max_tokens
        cache = self.new_cache(rows=1, context=len(token_ids) + limit)
        logits, sampler, made = self.prefill(cache, 0, token_ids), Sampler(sampling), list[int]()
        while len(made) < limit:
            token = self.groups.from_leader(choose(logits[None], Draws.of([sampler.at(len(made))], self._place))[0])
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

    def extend(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append `token_ids[b]` to row b, any number of tokens each; return the logits after each row's last.

        Returns:
            float32 [B, V]; a row that got no tokens has a result without meaning.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        after = torch.zeros(len(token_ids), self.config.vocab_size, device=self._place)
        for logits, rows in self._steps(cache, token_ids, every=False):
            after[rows] = logits[rows, 0]
        return after

    def advance(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append at most `cache.chunk` tokens to every row in one step; return the streams after each, [B, S, M, H].

        `read_out` makes logits of them, `draft` looks one token further. A row with fewer than S tokens has streams
        without meaning at its end.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        self.check_rows(cache, token_ids)
        assert max(map(len, token_ids)) <= cache.chunk, "one step appends at most a chunk"
        streams = self._streams(self._plan(cache, token_ids), cache.layers)
        for row, tokens in enumerate(token_ids):
            cache.lengths[row] += len(tokens)
        return streams

    def read_out(self, streams: Tensor) -> Tensor:
        """Streams [.., M, H] -> float32 logits [.., V]."""
        return self.to_logits(self.final.collapse(self.ops, streams))

    def new_draft_cache(self, rows: int, context: int) -> Cache:
        """An empty cache of the MTP stage's own layer.

        Raises:
            UsageError: the model was loaded without the stage.
        """
        self.require_mtp()
        ratios, dtype = tuple(self.config.compress_ratios[-1:]), self.numerics.dtype
        return Cache.allocate(self.config, ratios, rows, context, min(self.chunk, context), dtype, self._place)

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

    def draft_logits(self, token_ids: Sequence[int]) -> Tensor:
        """The MTP stage's logits: float32 [T - 1, V], row t for the token after `token_ids[t + 1]`.

        Raises:
            UsageError: the model was loaded without it, or there is no token to draft from.
        """
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

    # One step, top to bottom.

    def _forward(self, step: Step, layers: Sequence[LayerCache], *, every: bool) -> Tensor:
        streams = self._streams(step, layers)
        if not every:
            streams = streams[step.row, step.last[:, None]]
        return self.to_logits(self.final.collapse(self.ops, streams))

    def _streams(self, step: Step, layers: Sequence[LayerCache]) -> Tensor:
        streams = self.embed_tokens(step.tokens)[:, :, None].repeat(1, 1, self.config.hc_mult, 1)
        for block, cache in zip(self.blocks, layers, strict=True):
            streams = block.forward(self.ops, streams, step, cache, self.rope(block.attn.ratio), self.groups)
        return streams  # [B, S, M, H]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [..] -> [.., H]."""
        first = self.groups.rank * self.embed.shape[0]
        return self.groups.all_sum(self.ops.embedding(tokens, self.embed, first))

    def to_logits(self, x: Tensor) -> Tensor:
        """Hidden [.., H] -> float32 [.., V]."""
        return self.groups.gather_vocab(self.ops.linear(x, self.head, torch.float32))

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
        return plan_step(self.config, token_ids, cache.lengths, cache.context, cache.chunk, self._place)

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

    def require_mtp(self) -> MtpStage:
        """The draft stage.

        Raises:
            UsageError: the model was loaded without it.
        """
        if self.mtp is None:
            raise UsageError("the model was loaded without its MTP stage: load(..., mtp=True)")
        return self.mtp

    def _cover(self, context: int) -> None:
        """Make the RoPE tables reach `context` positions."""
        for compressed in (False, True):
            table = self._ropes.get(compressed)
            if table is None or len(table.cos) < context:
                self._ropes[compressed] = RopeTable.build(self.config, context, self._place, compressed=compressed)

    @property
    def _place(self) -> torch.device:
        return self.head.device

    def rope(self, ratio: int) -> RopeTable:
        """The table of layers with this compression ratio, as long as the longest cache so far."""
        return self._ropes[ratio > 0]

    @property
    def ropes(self) -> tuple[RopeTable, ...]:
        """All tables of now."""
        return tuple(self._ropes.values())
