"""Engram: a memory of n-grams. The last tokens name rows of a large table, which are added to the streams by a gate.

Legend: B rows, S tokens, M streams, H hidden, L tokens of the longest n-gram, R rows of this rank's part of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from flagrelease.engine.host_rows import Table
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear, project
from flagrelease.engine.parallel import Groups
from flagrelease.engine.v41.hashing import multipliers
from flagrelease.engine.v41.step import SharedStep
from flagrelease.engine.weights import Weights
from flagrelease.model.v41.config import V41Config


@dataclass(frozen=True, slots=True)
class Engram:
    """Of one layer.

    Attributes:
        table: [R, w], on the device or with the host.
        first: of the whole table's rows the first that is here.
        wkv: [(M + 1) H, (L - 1) heads w].
        q_weight: [M, H].
        k_weight: [M, H].
        words: int64 [V], the word of each token id.
        pad: the word where no token is to be seen.
        multipliers: int64 [L].
        primes: int64 [L - 1, heads].
        offsets: int64 [L - 1, heads].
        eps: of norms.
        image: the token id of images.
    """

    table: Table
    first: int
    wkv: Linear
    q_weight: Tensor
    k_weight: Tensor
    words: Tensor
    pad: int
    multipliers: Tensor
    primes: Tensor
    offsets: Tensor
    eps: float
    image: int

    @classmethod
    def load(
        cls, weights: Weights, config: V41Config, layer: int, primes: list[list[int]], words: Tensor, groups: Groups
    ) -> Engram:
        """Of layer number `layer`, with this rank's part of the table.

        Args:
            weights: what is under `engram`.
            config: of the model.
            layer: for its multipliers.
            primes: of the layer, by order and head.
            words: see `compressed_ids`.
            groups: the ranks.
        """
        table, q_weight = weights.table("embed.weight"), weights.plain("q_weight")
        flat = [prime for order in primes for prime in order]
        place, shape = q_weight.device, (len(primes), len(primes[0]))
        rows = config.engram_num_embeddings[config.engram_layer_ids.index(layer)]

        def numbers(values: tuple[int, ...] | list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=place)

        return cls(
            table=table,
            first=groups.rank * -(-rows // groups.mp),
            wkv=weights.linear("wkv"),
            q_weight=q_weight,
            k_weight=weights.plain("k_weight"),
            words=words.to(place),
            pad=int(words[config.engram_pad_token_id]),
            multipliers=numbers(multipliers(config, layer)),
            primes=numbers(flat).view(shape),
            offsets=numbers([0, *accumulate(flat)][:-1]).view(shape),
            eps=config.rms_norm_eps,
            image=config.image_token_id,
        )

    def forward(self, ops: Operators, streams: Tensor, step: SharedStep, tokens: Tensor, groups: Groups) -> Tensor:
        """Streams [B, S, M, H] -> [B, S, M, H]; `tokens` [B, N + 1] remembers the step's.

        Tokens of images read nothing and are seen by no later n-gram.
        """
        slots = tokens.shape[1] - 1
        tokens[step.row, step.slot_of(slots)] = step.tokens
        rows = ops.ngram_rows(self._seen(step, tokens, slots), self.multipliers, self.primes, self.offsets)
        read = groups.all_sum(ops.engram_rows(self.table.codes, self.table.scales, rows, self.first)).to(streams.dtype)
        (kv,) = project(ops, read, self.wkv)
        return ops.engram_gate(streams, kv, self.q_weight, self.k_weight, self.eps, ~step.image)

    def _seen(self, step: SharedStep, tokens: Tensor, slots: int) -> Tensor:
        """The words of each token and of those before it, [B, S, L]: the pad from where an n-gram ends."""
        back = torch.arange(len(self.multipliers), device=tokens.device)
        positions = step.positions[..., None] - back
        ids = tokens[step.row[..., None], positions % slots]
        ended = ((positions < 0) | (ids == self.image)).cumsum(-1) > 0
        return torch.where(ended, self.pad, self.words[ids])
