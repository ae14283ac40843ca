"""What every layer does at a few positions, seen through the operators that the model calls.

The model names no implementation of its operators, so an observer can stand in for them: nothing in the engine knows of
it, and a run without it costs nothing. A layer calls `hc_post` twice (behind attention, behind the feed-forward), a
router's choice once, `topk_visible` (or `topk_candidates`) once if it has an indexer; whatever else would come is an
error here, not a gap.

Legend: P positions, M streams, H hidden, E experts, k experts a token, n entries an indexer chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flagrelease.engine.kernels.operators import OPERATORS, V41_OPERATORS, Operators
from flagrelease.engine.loaded import AnyModel
from flagrelease.records.rules import ReplayRules

Array = NDArray[Any]
States = dict[str, Array]
_SEEN = ("streams", "attention", "scores", "experts", "entries")


def sampled_positions(tokens: int, rules: ReplayRules) -> tuple[int, ...]:
    """The inputs of a document of `tokens` at which states are kept: evenly spread, the last input among them."""
    inputs, count = tokens - 1, min(rules.layer_positions, tokens - 1)
    return tuple((n + 1) * inputs // count - 1 for n in range(count))


class LayerObserver(Operators):
    """Operators that keep what layers produce at `positions`. `model` is the model that calls them.

    `states()` has, for layer n: `n.streams` [P, M, H] behind the layer and `n.attention` [P, H] (BF16 as its bits,
    uint16, or float32), `n.scores` float32 [P, E] (with the router's bias, as it chooses), `n.experts` int32 [P, k],
    and with an indexer `n.entries` int32 [P, n], -1 for none.
    """

    def __init__(self, model: AnyModel, positions: Sequence[int]) -> None:
        """Stand in for the operators of `model`."""
        self.name = model.ops.name
        for operator in (*OPERATORS, *V41_OPERATORS):
            setattr(self, operator, getattr(model.ops, operator))
        self._inner = model.ops
        self._layers = model.config.num_hidden_layers
        self._positions, self._wanted = tuple(positions), list[int]()
        self._count = 0
        self._parts: dict[str, list[Tensor]] = {}
        for operator in ("hc_post", "route", "route_hashed", "route_modal", "topk_candidates", "topk_visible"):
            setattr(self, operator, getattr(self, f"_{operator}"))
        self.model = replace(model, ops=self)

    def before_step(self, positions: range) -> None:
        """The model's next step holds these positions."""
        self._wanted = [position - positions.start for position in self._positions if position in positions]
        self._count = 0

    def states(self) -> States:
        """What was seen.

        Raises:
            RuntimeError: the model did not call its operators as this module expects.
        """
        made = {name: torch.cat(parts) for name, parts in self._parts.items()}
        if self._count != 2 * self._layers:
            raise RuntimeError(f"the model called hc_post {self._count} times for {self._layers} layers")
        for name in [f"{n}.{kind}" for n in range(self._layers) for kind in _SEEN[:-1]]:
            if name not in made or len(made[name]) != len(self._positions):
                raise RuntimeError(f"{name}: not seen at every position")
        return {name: _stored(tensor) for name, tensor in made.items()}

    def _hc_post(self, o: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        after = self._inner.hc_post(o, x, post, comb)
        layer, behind_ffn = divmod(self._count, 2)
        self._see(layer, "streams" if behind_ffn else "attention", after[0] if behind_ffn else o[0])
        self._count += 1
        return after

    def _route(self, scores: Tensor, bias: Tensor | None, topk: int, route_scale: float) -> tuple[Tensor, Tensor]:
        ids, weights = self._inner.route(scores, bias, topk, route_scale)
        self._see_route(scores if bias is None else scores + bias, ids)
        return ids, weights

    def _route_hashed(
        self, scores: Tensor, tid2eid: Tensor, tokens: Tensor, route_scale: float
    ) -> tuple[Tensor, Tensor]:
        ids, weights = self._inner.route_hashed(scores, tid2eid, tokens, route_scale)
        self._see_route(scores, ids)
        return ids, weights

    def _route_modal(
        self, scores: Tensor, bias: Tensor, bias_vl: Tensor, image: Tensor | None, topk: int, route_scale: float
    ) -> tuple[Tensor, Tensor]:
        ids, weights = self._inner.route_modal(scores, bias, bias_vl, image, topk, route_scale)
        self._see_route(scores + (bias if image is None else torch.where(image[:, None], bias_vl, bias)), ids)
        return ids, weights

    def _topk_visible(self, scores: Tensor, visible: Tensor, k: int, offset: int = 0) -> Tensor:
        return self._see_entries(self._inner.topk_visible(scores, visible, k, offset), k)

    def _topk_candidates(self, scores: Tensor, visible: Tensor, k: int, blocks: Tensor, size: int) -> Tensor:
        return self._see_entries(self._inner.topk_candidates(scores, visible, k, blocks, size), k)

    @property
    def _layer(self) -> int:
        return self._count // 2

    def _see_entries(self, chosen: Tensor, k: int) -> Tensor:
        self._see(self._layer, "entries", torch.nn.functional.pad(chosen[0], (0, k - chosen.shape[-1]), value=-1))
        return chosen

    def _see_route(self, scores: Tensor, ids: Tensor) -> None:
        self._see(self._layer, "scores", scores)
        self._see(self._layer, "experts", ids)

    def _see(self, layer: int, kind: str, rows: Tensor) -> None:
        if self._wanted:
            self._parts.setdefault(f"{layer}.{kind}", []).append(rows[self._wanted].cpu())


def _stored(tensor: Tensor) -> Array:
    """As numpy; BF16, which numpy does not have, as its bits."""
    bits: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return bits


def floats(stored: Array) -> NDArray[np.float64]:
    """What `_stored` wrote, as float64."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)
