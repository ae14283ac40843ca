"""`Model`: DeepSeek-V4 as it is loaded, in steps of `Network`, with the preview's draft stage.

Legend: B rows, S tokens of a step, T tokens of a sequence, M streams, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.token_ids import token_list
from flagrelease.engine.v4.block import Block
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.dspark import DsparkStages
from flagrelease.engine.v4.hyper_connection import HyperHead
from flagrelease.engine.v4.mtp import MtpStage
from flagrelease.engine.v4.network import Network
from flagrelease.engine.v4.step import Step, plan_step
from flagrelease.engine.weights import Weights
from flagrelease.errors import UsageError
from flagrelease.model.v4.config import ModelConfig

if TYPE_CHECKING:
    from flagrelease.engine.token_ids import TokenIds


@dataclass(slots=True)
class Model(Network):
    """DeepSeek-V4, loaded: what all families have, and its draft stages."""

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

    def allocate(self, rows: int, context: int, chunk: int, place: torch.device) -> Cache:
        """See `LoadedModel`."""
        ratios = tuple(self.config.compress_ratios[: self.config.num_hidden_layers])
        return Cache.allocate(self.config, ratios, rows, context, chunk, self.numerics, place, self.most_drafts)

    def run_step(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The streams behind each token, [B, S, M, H], and what draft stages read of it, see `drafting`.

        That is the streams for the preview's stage, and for DSpark's [B, S, targets H], the pooled streams of the
        target layers.
        """
        return self.watched(self._plan(cache, token_ids), cache.layers)

    # The preview's draft stage.

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

    def _plan(self, cache: Cache, token_ids: Sequence[Sequence[int]]) -> Step:
        return plan_step(self.config, token_ids, cache.lengths, cache.context, cache.chunk, self._place, cache.drafts)
