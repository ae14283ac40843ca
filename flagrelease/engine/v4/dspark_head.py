"""The end of DSpark's stages: base logits, the Markov head's bias for each token chosen, and confidences.

Legend: B rows, g block size, M streams, H hidden, R markov rank, V vocabulary, v this rank's slice of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v4.hyper_connection import HyperHead
from flagrelease.engine.weights import Weights
from flagrelease.model.v4.config import ModelConfig

# Of the i-th draft's logits, float32 [B, V], the tokens: int64 [B].
Choose = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Drafts:
    """What was guessed for a batch.

    Attributes:
        tokens: int64 [B, N], the next N tokens of each row.
        logits: float32 [B, N, V], from which they were chosen.
        confidence: float32 [B, N], how likely each is to be accepted if those before it are; None: not known.
    """

    tokens: Tensor
    logits: Tensor
    confidence: Tensor | None


@dataclass(frozen=True, slots=True)
class DsparkHead:
    """The collapse of the streams with the norm behind it, the Markov head and the confidence head.

    Attributes:
        final: hc_head and norm of the last stage.
        markov_w1: [v, R], of the token before.
        markov_w2: [v, R].
        confidence: [1, H + R].
    """

    final: HyperHead
    markov_w1: Tensor
    markov_w2: Tensor
    confidence: Tensor

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig) -> DsparkHead:
        """The head of the last stage, under `weights`."""
        markov = weights.at("markov_head")
        return cls(
            HyperHead.load(weights, config),
            markov.plain("markov_w1.weight"),
            markov.plain("markov_w2.weight"),
            weights.at("confidence_head").plain("proj.weight"),
        )

    def draft(
        self, ops: Operators, streams: Tensor, head: Tensor, anchors: Tensor, choose: Choose | None, groups: Groups
    ) -> Drafts:
        """Choose the tokens of a block from left to right.

        Args:
            ops: operators.
            streams: [B, g, M, H] of the last stage.
            head: the model's output head, [v, H].
            anchors: int64 [B], the first token of each block.
            choose: called on the leader; the other ranks get its tokens. None: the likeliest tokens.
            groups: the ranks.
        """
        x = self.final.sum(ops, streams)
        base = ops.linear(self.final.normed(ops, x), head, torch.float32)
        tokens, logits, embeddings = [anchors], list[Tensor](), list[Tensor]()
        for place in range(x.shape[1]):
            before, likely = self.biased(ops, base[:, place], tokens[-1], groups)
            logits.append(likely)
            embeddings.append(before)
            if choose is None:
                chosen = likely.argmax(-1)
            else:
                chosen = choose(place, likely) if groups.is_leader else torch.empty_like(anchors)
            groups.share(chosen)
            tokens.append(chosen)
        confidence = self.rated(ops, torch.cat((x, torch.stack(embeddings, 1)), -1))
        return Drafts(torch.stack(tokens[1:], 1), torch.stack(logits, 1), confidence)

    def biased(self, ops: Operators, base: Tensor, tokens: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """The logits of drafts that follow `tokens`: z_i = head norm(x_i) + markov_w2 markov_w1[y_i], in FP32.

        Args:
            ops: operators.
            base: float32 [B, v], head norm(x_i) of this rank.
            tokens: int64 [B], y_i.
            groups: the ranks.

        Returns:
            markov_w1[y_i] [B, R], and the logits float32 [B, V].
        """
        before = groups.all_sum(ops.embedding(tokens, self.markov_w1, groups.rank * len(self.markov_w1)))
        return before, groups.gather_vocab(base + ops.linear(before, self.markov_w2, torch.float32))

    def rated(self, ops: Operators, seen: Tensor) -> Tensor:
        """Confidences float32 [..]: sigmoid(w . (x_i, markov_w1[y_i])) of `seen` [.., H + R], x_i without the norm."""
        return ops.linear(seen, self.confidence, torch.float32)[..., 0].sigmoid()
