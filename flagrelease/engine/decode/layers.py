"""The layers of a decoding step. Legend: B rows, W tokens a row, M streams, H hidden, S parts of an output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flagrelease.engine.decode.attention import attend
from flagrelease.engine.decode.feed_forward import feed_forward
from flagrelease.engine.decode.step import DecodeStep
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.linear import Linear
from flagrelease.engine.parallel import Groups, alone
from flagrelease.engine.schemes import Rounded
from flagrelease.engine.v4.block import Block
from flagrelease.engine.v4.cache import LayerCache
from flagrelease.engine.v4.hyper_connection import HyperConnection
from flagrelease.engine.v4.model import Model

_ALONE = alone()


class _Mixed(NamedTuple):
    """Streams [W * B, M, H] and their mixes for the next sub-layer, if there is one; see `hc_mixes`."""

    streams: Tensor
    mixes: tuple[Tensor, Tensor] | None


def run_layers(
    model: Model, blocks: Sequence[Block], streams: Tensor, step: DecodeStep, caches: Sequence[LayerCache],
    watch: Callable[[int, Tensor], None] = lambda layer, streams: None,
) -> Tensor:  # fmt: skip
    """Streams [W * B, M, H] -> [W * B, M, H], the same on every rank. `watch` is shown those behind each layer."""
    mixed = _Mixed(streams, model.ops.hc_mixes(streams, blocks[0].attn_hc.fn))
    next_fn = [*(block.attn_hc.fn for block in blocks[1:]), None]
    for layer, (block, cache, fn) in enumerate(zip(blocks, caches, next_fn, strict=True)):
        mixed = _run_layer(model, block, mixed, step, cache, fn)
        watch(layer, mixed.streams)
    return mixed.streams


def _run_layer(
    model: Model, block: Block, mixed: _Mixed, step: DecodeStep, cache: LayerCache, next_fn: Tensor | None
) -> _Mixed:
    ops, groups = model.ops, model.groups
    x, weights = _open(ops, block.attn_hc, mixed, block.attn.latents, step)
    parts = attend(ops, block.attn, x, step, cache, model.rope(block.attn.ratio), groups)
    if groups.o_mode == "shared":  # the sum is not over all ranks
        parts = groups.sum_output(_added(ops, parts))
        mixed = _close(ops, _ALONE, parts, mixed, *weights(), block.ffn_hc.fn)
    else:
        mixed = _close(ops, groups, parts, mixed, *weights(), block.ffn_hc.fn)
    x, weights = _open(ops, block.ffn_hc, mixed, block.ffn.w13, step)
    parts = feed_forward(ops, block.ffn, x, step)
    if not groups.is_leader:  # the last part is the shared expert's, which every rank has whole: it counts once
        parts = parts[:-1]
    return _close(ops, groups, parts, mixed, *weights(), next_fn)


def _open(
    ops: Operators, hc: HyperConnection, mixed: _Mixed, into: Linear, step: DecodeStep
) -> tuple[Rounded, Callable[[], tuple[Tensor, Tensor]]]:
    """The sub-layer's input, rounded as the linear that it goes `into` takes it; what gives post and comb."""
    assert mixed.mixes is not None
    streams, mixes = mixed.streams, mixed.mixes
    weights = step.branches.beside(
        ops.hc_weights, streams, *mixes, hc.scale, hc.base, hc.iters, hc.eps, hc.norm_eps, lane=1
    )  # fmt: skip
    x = ops.hc_pre_norm(streams, *mixes, hc.scale, hc.base, hc.eps, hc.norm_eps, hc.norm, into.scheme.fused)
    return into.take(ops, *x), weights


def _close(
    ops: Operators, groups: Groups, parts: Tensor, mixed: _Mixed, post: Tensor, comb: Tensor, next_fn: Tensor | None
) -> _Mixed:
    """All ranks' parts of the output back in the streams, and the mixes by the next sub-layer's fn."""
    if next_fn is not None and ops.hc_post_mixes_over_ranks is not None and groups.exchanges(parts[0]):
        assert groups.exchange is not None
        streams, *mixes = ops.hc_post_mixes_over_ranks(parts, mixed.streams, post, comb, next_fn, groups.exchange)
        return _Mixed(streams, (mixes[0], mixes[1]))
    if groups.mp > 1:
        parts = groups.all_sum(_added(ops, parts))
    if next_fn is None:
        return _Mixed(ops.hc_post_parts(parts, mixed.streams, post, comb), None)
    streams, *mixes = ops.hc_post_mixes(parts, mixed.streams, post, comb, next_fn)
    return _Mixed(streams, (mixes[0], mixes[1]))


def _added(ops: Operators, parts: Tensor) -> Tensor:
    """A rank's parts [S, B, H] as the ranks add them up: FP32 [1, B, H].

    In FP32, as the plain pass does: the end of the sub-layer rounds the sum over ranks, once. Adding here before the
    ranks do costs a launch and saves S - 1 of S bytes on the links.
    """
    return ops.round_parts(parts, torch.float32, False)[0][None]
