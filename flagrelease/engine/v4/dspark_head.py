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
        self, ops: Operators, streams: Tensor, head: Tensor, anchors: Tensor, choose: Choose, groups: Groups
    ) -> Drafts:
        """Choose the tokens of a block from left to right.

        The logits of draft i are those of the block's i-th position and a bias that depends on the token before it,
        which is the one just chosen: z_i = head norm(x_i) + markov_w2 markov_w1[y_i], in FP32. Its confidence is
        sigmoid(w . (x_i, markov_w1[y_i])), of x_i without the norm.

        Args:
            ops: operators.
            streams: [B, g, M, H] of the last stage.
            head: the model's output head, [v, H].
            anchors: int64 [B], the first token of each block.
            choose: called on the leader; the other ranks get its tokens.
            groups: the ranks.
        """
        x = self.final.sum(ops, streams)
        base = ops.linear(self.final.normed(ops, x), head, torch.float32)
        tokens, logits, embeddings = [anchors], list[Tensor](), list[Tensor]()
        first = groups.rank * len(self.markov_w1)
        for place in range(x.shape[1]):
            before = groups.all_sum(ops.embedding(tokens[-1], self.markov_w1, first))
            own = base[:, place] + ops.linear(before, self.markov_w2, torch.float32)
            logits.append(groups.gather_vocab(own))
            embeddings.append(before)
            chosen = choose(place, logits[-1]) if groups.is_leader else torch.empty_like(anchors)
            groups.share(chosen)
            tokens.append(chosen)
        both = torch.cat((x, torch.stack(embeddings, 1)), -1)
        confidence = ops.linear(both, self.confidence, torch.float32)[..., 0].sigmoid()
        return Drafts(torch.stack(tokens[1:], 1), torch.stack(logits, 1), confidence)
