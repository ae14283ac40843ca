"""DSpark's draft stages (V4-Flash-0731, V4-Pro-0813): blocks that draft several tokens in one pass.

The stages read the target model at some of its layers: the mean of the streams that each of them leaves. One projection
makes of these means what the keys of all stages are made of, so that reading a position costs a key for each stage and
no block. A draft is one pass of all stages over a block of g tokens: the newest token, which the target has not seen,
then g - 1 times a noise token. The tokens of a block see the keys of the last `sliding_window` positions and one
another, later ones too; their own keys are used in this pass only. A captured pass puts them into the rings, which are
a block longer than the window, behind all that is visible: what is read later overwrites them.

From DeepSeek's inference/model.py of 0731. Legend: B rows, S tokens, M streams, H hidden, HD head_dim, g block size,
W sliding_window, R markov rank, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear, project
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.v4.block import Block
from flagrelease.engine.v4.cache import LayerCache
from flagrelease.engine.v4.dspark_head import DsparkHead
from flagrelease.engine.v4.rope import RopeTable
from flagrelease.engine.weights import Weights
from flagrelease.errors import UsageError
from flagrelease.model.v4.config import ModelConfig


def pool(streams: Tensor) -> Tensor:
    """What the stages read of a target layer: the mean of the streams that it leaves, [.., M, H] -> [.., H]."""
    return streams.float().mean(-2).to(streams.dtype)


@dataclass(frozen=True, slots=True)
class DsparkStages:
    """The stages of one model; embedding and output head are the target's.

    Attributes:
        targets: the layers whose streams are pooled; `main_proj` takes them in the order of the layers.
        main_proj: from the pooled streams of all targets, [.., targets H], to [.., H].
        main_norm: after it.
        blocks: one a stage, without compression.
        head: what makes logits and confidences of the last stage's streams.
        size: g.
        noise: id of the noise token.
        window: W.
        eps: of main_norm.
    """

    targets: tuple[int, ...]
    main_proj: Linear
    main_norm: Tensor
    blocks: tuple[Block, ...]
    head: DsparkHead
    size: int
    noise: int
    window: int
    eps: float

    @classmethod
    def load(cls, weights: Weights, config: ModelConfig, numerics: Numerics, groups: Groups) -> DsparkStages:
        """The stages under `weights`, with this rank's part of what is cut.

        Raises:
            UsageError: the release has no such stages; they compress their keys; a block is empty; the noise token or a
                target layer is not the model's.
        """
        size, noise, targets = config.dspark_block_size, config.dspark_noise_token_id, config.dspark_target_layer_ids
        if size is None or noise is None or targets is None:
            raise UsageError("this release has no DSpark stages")
        if size < 1:
            raise UsageError(f"dspark_block_size is {size}: a block has at least its first token")
        if not 0 <= noise < config.vocab_size:
            raise UsageError(f"dspark_noise_token_id is {noise}: the vocabulary has {config.vocab_size} tokens")
        ratios = config.compress_ratios[config.num_hidden_layers :]
        if any(ratios):
            raise UsageError(
                f"compress_ratios of the DSpark stages are {list(ratios)}: they keep their keys as they are"
            )
        if set(targets) - set(range(config.num_hidden_layers)) or len(set(targets)) < len(targets):
            raise UsageError(
                f"dspark_target_layer_ids {list(targets)}: different ones of the model's {config.num_hidden_layers} "
                f"layers are expected"
            )
        return cls(
            tuple(sorted(targets)),
            weights.at("0").linear("main_proj"),
            weights.at("0").plain("main_norm.weight"),
            tuple(
                Block.load(weights.at(str(stage)), config, 0, numerics, groups, hashed=False)
                for stage in range(len(targets))
            ),
            DsparkHead.load(weights.at(str(len(targets) - 1)), config),
            size,
            noise,
            config.sliding_window,
            config.rms_norm_eps,
        )

    def arranged(self, ops: Operators) -> DsparkStages:
        """With weights as the operators' kernels read them."""
        return replace(self, blocks=tuple(block.arranged(ops) for block in self.blocks))

    def read(
        self, ops: Operators, features: Tensor, starts: Tensor, counts: Tensor, rings: tuple[LayerCache, ...],
        rope: RopeTable,
    ) -> None:  # fmt: skip
        """Write the keys of the next positions to every stage's ring, each in the slot of its position.

        Args:
            ops: operators.
            features: [B, S, targets H], the pooled streams of the positions.
            starts: int64 [B], the first position of each row.
            counts: int64 [B], its number of positions, at most S; what follows in `features` means nothing.
            rings: of each stage.
            rope: of layers without compression.
        """
        place = torch.arange(features.shape[1], device=features.device)[None]
        real = place < counts[:, None]
        slots = rings[0].kv.shape[1] - 1
        kept = real & (place >= counts[:, None] - slots)  # no slot is written twice
        positions = (starts[:, None] + place) * real
        slot = torch.where(kept, positions % slots, -1)
        row = torch.arange(len(features), device=features.device)[:, None]
        (x,) = project(ops, features, self.main_proj)
        x = ops.rms_norm(x, self.main_norm, self.eps)
        cos, sin = rope.rows(positions)
        for block, ring in zip(self.blocks, rings, strict=True):
            (kv,) = project(ops, x, block.attn.wkv)
            ring.kv[row, slot] = block.attn.keys(ops, kv, cos, sin, like=ring.kv)

    def run(
        self, ops: Operators, streams: Tensor, tokens: Tensor, starts: Tensor, rings: tuple[LayerCache, ...],
        rope: RopeTable, groups: Groups,
    ) -> Tensor:  # fmt: skip
        """The streams that the last stage leaves at every token of a block, [B, g, M, H]. Nothing is kept.

        Args:
            ops: operators.
            streams: [B, g, M, H], the embeddings of `tokens` in every stream.
            tokens: int64 [B, g].
            starts: int64 [B], the positions of the first tokens: as many as the row's ring has read.
            rings: of each stage.
            rope: of layers without compression.
            groups: the ranks.
        """
        cos, sin = rope.rows(starts[:, None] + torch.arange(self.size, device=starts.device))
        for block, ring in zip(self.blocks, rings, strict=True):
            keys = ring.kv[:, :-1]
            visible = self._visible(starts, keys.shape[1])

            def attend(x: Rounded, block: Block = block, keys: Tensor = keys, visible: Tensor = visible) -> Tensor:
                return block.attn.forward_block(ops, x, keys, visible, (cos, sin), groups)

            def feed(x: Rounded, block: Block = block) -> Tensor:
                return block.ffn.forward(ops, x, tokens, None, groups)

            streams = block.attn_hc.around(ops, streams, block.attn.latents, attend)
            streams = block.ffn_hc.around(ops, streams, block.ffn.w13, feed)
        return streams

    def _visible(self, starts: Tensor, ring: int) -> Tensor:
        """Keys that each token of a block sees, int32 [B, g, W + g]: slots of the ring, then the block; -1 = none."""
        back = starts[:, None] + torch.arange(-self.window, 0, device=starts.device)
        block = torch.arange(ring, ring + self.size, device=starts.device).expand(len(starts), -1)
        keys = torch.cat((torch.where(back < 0, -1, back % ring), block), 1)
        return keys.int()[:, None].expand(-1, self.size, -1)
