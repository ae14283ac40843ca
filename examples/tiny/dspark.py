"""DSpark's three draft stages in plain torch, trainable: shared/facts/deepseek-v4.1-and-dspark.md, part A.1.

Many blocks of a sequence are drafted at once: each has its own window of context keys, cut from keys that are made for
the whole sequence. Parameter names are those of a DeepSeek checkpoint (routed experts stacked, as in model.py).

Shape suffixes as in model.py, and: A anchors (blocks) a sequence, G tokens a block, T target layers, M markov rank.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from model import (
    Block,
    Config,
    Linear,
    Numerics,
    RMSNorm,
    Rotations,
    TinyV4,
    attend,
    attention_logits,
    head_parameters,
    kv_format,
    reduce_streams,
    rms_normalize,
    rotate,
    write_streams,
)
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class DraftConfig:
    """DSpark's fields of config.json; names as there."""

    dspark_block_size: int
    dspark_noise_token_id: int
    dspark_target_layer_ids: tuple[int, ...]
    dspark_markov_rank: int

    @classmethod
    def read(cls, path: Path) -> "DraftConfig":
        """The draft stages' part of a checkpoint's config.json."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["dspark_target_layer_ids"] = tuple(fields["dspark_target_layer_ids"])
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


def read_target(
    target: TinyV4, ids_bs: Tensor, layers: tuple[int, ...], rotations: Rotations, see_all: Tensor
) -> tuple[Tensor, Tensor]:
    """What the stages read of the target, [B, S, T * D]: each layer's mean stream; and its logits [B, S, V]."""
    left, _ = target.decode(ids_bs, rotations, see_all)
    means = [left[layer].float().mean(-2).to(left[layer].dtype) for layer in layers]
    return torch.cat(means, -1), target.next_logits(left[-1])


class Stage(Block):
    """A sliding block that attends to keys of the target's hidden states and, both ways, within its block."""

    def context_keys(self, main_x: Tensor, rotation: Tensor) -> Tensor:
        """Keys [B, S, K] of main_x [B, S, D]; rotation [S, R/2, 2]."""
        return self._keys(main_x, rotation)

    def draft(self, streams: Tensor, context: Tensor, seen: Tensor, rotation: Tensor) -> Tensor:
        """The streams [n, G, N, D] of n blocks, one stage further.

        context [n, W, K] are the keys of the positions in front of each block, of which `seen` [n, W] says which are
        there; rotation [n, G, R/2, 2] belongs to the block's own positions.
        """
        x, post, comb = self._read(streams, self.hc_attn_fn, self.hc_attn_scale, self.hc_attn_base)
        output = self._attend(self.attn_norm(x), context, seen, rotation)
        streams = write_streams(streams, output, post, comb)
        x, post, comb = self._read(streams, self.hc_ffn_fn, self.hc_ffn_scale, self.hc_ffn_base)
        no_ids = torch.empty(0, dtype=torch.int64, device=x.device)  # stages are not hash-routed
        return write_streams(streams, self.ffn(self.ffn_norm(x), no_ids), post, comb)

    def _keys(self, x: Tensor, rotation: Tensor) -> Tensor:
        attn = self.attn
        kv = rotate(attn.kv_norm(attn.wkv(x)), rotation)
        return kv_format(kv, self.config.qk_rope_head_dim, attn.numerics)

    def _attend(self, x: Tensor, context: Tensor, seen: Tensor, rotation: Tensor) -> Tensor:
        attn, config = self.attn, self.config
        q = attn.wq_b(attn.q_norm(attn.wq_a(x))).unflatten(-1, (config.num_attention_heads, config.head_dim))
        q = rotate(rms_normalize(q, config.rms_norm_eps), rotation)
        keys = torch.cat([context, self._keys(x, rotation)], 1).unsqueeze(1)
        mask = functional.pad(seen, (0, x.shape[1]), value=True)[:, None, None]  # a block sees all of itself
        logits = attention_logits(q, keys, None) * config.head_dim**-0.5
        o = attend(logits, mask, attn.attn_sink, keys, None)
        return attn.wo_b(attn._grouped(rotate(o, rotation, inverse=True)))


class MarkovHead(nn.Module):
    """The bias of the next token's logits by the token before: markov_w2 markov_w1[token]."""

    def __init__(self, vocabulary: int, rank: int, numerics: Numerics) -> None:
        """Without any bias at the start."""
        super().__init__()
        self.markov_w1 = Linear(rank, vocabulary, numerics, fp8=False)
        self.markov_w2 = Linear(rank, vocabulary, numerics, fp8=False)
        nn.init.zeros_(self.markov_w2.weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of markov_w1, [..] -> [.., M]; as a product, whose gradient is summed in one order."""
        rows = self.markov_w1.weight
        return functional.linear((ids.unsqueeze(-1) == torch.arange(len(rows), device=ids.device)).float(), rows.t())

    def bias(self, embedded: Tensor) -> Tensor:
        """[.., M] -> [.., V], FP32."""
        return functional.linear(embedded, self.markov_w2.weight)


class ConfidenceHead(nn.Module):
    """The logit of a draft's acceptance, from its hidden state and the Markov embedding of the token before."""

    def __init__(self, inputs: int, numerics: Numerics) -> None:
        """Undecided at the start."""
        super().__init__()
        self.proj = Linear(inputs, 1, numerics, fp8=False)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """[.., D] and [.., M] -> [..], FP32."""
        return functional.linear(torch.cat([x.float(), embedded], -1), self.proj.weight).squeeze(-1)


class Blocks(NamedTuple):
    """Of every block: the collapsed hidden states [B, A, G, D] and the logits [B, A, G, V] without the Markov bias."""

    x: Tensor
    base: Tensor


class DraftStages(nn.Module):
    """All stages; embedding and output head are the target's."""

    def __init__(self, config: Config, draft: DraftConfig, numerics: Numerics) -> None:
        """Random weights. `config.compress_ratios` has a 0 for each stage behind those of the layers."""
        super().__init__()
        hidden, stages = config.hidden_size, len(draft.dspark_target_layer_ids)
        self.config, self.draft_config, self.numerics = config, draft, numerics
        self.mtp = nn.ModuleList(Stage(config, config.num_hidden_layers + k, numerics) for k in range(stages))
        first, last = self.mtp[0], self.mtp[-1]
        first.main_proj = Linear(stages * hidden, hidden, numerics, fp8=True)
        first.main_norm = RMSNorm(hidden, config.rms_norm_eps)
        last.hc_head_fn, last.hc_head_base, last.hc_head_scale = head_parameters(config)
        last.norm = RMSNorm(hidden, config.rms_norm_eps)
        last.markov_head = MarkovHead(config.vocab_size, draft.dspark_markov_rank, numerics)
        last.confidence_head = ConfidenceHead(hidden + draft.dspark_markov_rank, numerics)

    @property
    def markov(self) -> MarkovHead:
        """The last stage's Markov head."""
        return self.mtp[-1].markov_head

    @property
    def confidence(self) -> ConfidenceHead:
        """The last stage's confidence head."""
        return self.mtp[-1].confidence_head

    def forward(self, target: TinyV4, features: Tensor, anchors: Tensor, tokens: Tensor, rotation: Tensor) -> Blocks:
        """Every block of every sequence.

        features [B, S, T * D] of `read_target`; anchors [B, A], the positions of the blocks' first tokens, and
        `tokens` [B, A], those tokens; rotation [at least S + G, R/2, 2] of sliding layers. A block reads the features
        of positions before its anchor only.
        """
        config, size = self.config, self.draft_config.dspark_block_size
        positions, window = features.shape[1], config.sliding_window
        main_x = self.mtp[0].main_norm(self.mtp[0].main_proj(features))
        place = anchors.unsqueeze(-1) - window + torch.arange(window, device=anchors.device)
        chosen = (place.unsqueeze(-1) == torch.arange(positions, device=anchors.device)).to(main_x.dtype).flatten(1, 2)
        seen = (place >= 0).flatten(0, 1)
        own = rotation[anchors.unsqueeze(-1) + torch.arange(size, device=anchors.device)].flatten(0, 1)
        noise = torch.full((*tokens.shape, size - 1), self.draft_config.dspark_noise_token_id, device=tokens.device)
        ids = torch.cat([tokens.unsqueeze(-1), noise], -1).flatten(0, 1)
        streams = target.embed.weight.to(self.numerics.dtype)[ids].unsqueeze(-2).expand(-1, -1, config.hc_mult, -1)
        for stage in self.mtp:
            keys = stage.context_keys(main_x, rotation[:positions])
            context = torch.bmm(chosen, keys).view(-1, window, keys.shape[-1])
            streams = stage.draft(streams, context, seen, own)
        last = self.mtp[-1]
        x = reduce_streams(streams, last.hc_head_fn, last.hc_head_base, last.hc_head_scale, config)
        return Blocks(*(part.view(*anchors.shape, size, -1) for part in (x, target.logits(last.norm(x)))))

    def draft_greedily(self, blocks: Blocks, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest drafts [B, A, G] from left to right, and their confidences."""
        drafts, confidences, before = [], [], tokens
        for place in range(blocks.x.shape[-2]):
            embedded = self.markov.embed(before)
            before = (blocks.base[..., place, :] + self.markov.bias(embedded)).argmax(-1)
            drafts.append(before)
            confidences.append(self.confidence(blocks.x[..., place, :], embedded).sigmoid())
        return torch.stack(drafts, -1), torch.stack(confidences, -1)
