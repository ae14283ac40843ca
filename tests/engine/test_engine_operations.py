"""All arithmetic of a step is in the operators: the framework only moves and reshapes.

So a provider whose operators are kernels computes the whole model without the libraries of the framework.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_checkpoint import random_tokens
from torch.utils._python_dispatch import TorchDispatchMode

from flagrelease import engine
from flagrelease.engine.kernels.operators import OPERATORS, Operators
from flagrelease.engine.v4.compressor import Compressor

# Copies, views, gathers and scatters; casts are copies.
MEMORY = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "clone", "copy_", "detach", "empty",
    "empty_like", "expand", "index", "index_put_", "new_empty", "permute", "repeat", "select", "slice", "split",
    "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze", "view", "zeros",
}  # fmt: skip


class Outside(TorchDispatchMode):
    """Records what is dispatched while no operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            name = func.overloadpacket.__name__
            self.seen[name] = self.seen.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def watched(mode: Outside) -> Operators:
    def wrap(operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            mode.inside += 1
            try:
                return operator(*args, **kwargs)
            finally:
                mode.inside -= 1

        return run

    ops = Operators()
    for name in OPERATORS:
        setattr(ops, name, wrap(getattr(Operators, name)))
    return ops


def trace(release: Path, numerics: Any, tokens: int) -> set[str]:
    """What the framework did in a step of `tokens`, from planned step to logits, after 130 tokens of context."""
    model, mode = engine.load(release, numerics), Outside()
    cache = model.new_cache(rows=2, context=300)
    model.extend(cache, [random_tokens(130), random_tokens(127)])
    step = model._plan(cache, [random_tokens(tokens), random_tokens(tokens)])
    model.ops = watched(mode)
    with mode:
        streams, _ = model.watched(step, cache.layers)
        model.read_out(streams[step.row, step.last[:, None]])
    return set(mode.seen)


@pytest.mark.parametrize("numerics", ["native", "bf16"])
@pytest.mark.parametrize("tokens", [1, 129])
def test_a_step_leaves_only_memory_operations(native_release: Path, numerics: str, tokens: int) -> None:
    seen = trace(native_release, numerics, tokens)
    assert "index_put_" in seen  # the cache is written: something was recorded
    assert seen <= MEMORY


def test_planted_arithmetic_is_caught(native_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = Compressor.entries
    monkeypatch.setattr(Compressor, "entries", lambda self, ops, x, *rest: entries(self, ops, x * 2, *rest))
    assert trace(native_release, "native", 1) - MEMORY == {"mul"}
