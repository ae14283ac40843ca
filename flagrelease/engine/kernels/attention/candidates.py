"""The best of many entries, level by level: groups of entries are compared by their best one before entries are.

The k best entries lie in the k best groups (of equal groups, the first ones). If one of them lay in another group, each
of the k groups before that would hold an entry that goes before it: its score is higher, or equal at a lower index. So
a step chooses among the entries of k groups, and the step before it among the groups.

Legend: R rows, N values of a level (maxima of groups, or scores), M candidates among them, K wanted.
"""
# ruff: noqa: N803  (dimensions of the legend)

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import ceil_div

GROUP = 4  # values of a level that one of the next stands for
LEVELS = 4  # at most
MOST = 2112  # values of the uppermost level, where there are no more levels than that


@dataclass(frozen=True, slots=True)
class Level:
    """`values` FP32 [R, N]: scores, or of each `span` entries the maximum; groups without a visible entry have none."""

    values: Tensor
    span: int


# The level, visible entries [R], K, groups chosen before (int32 [R, ..], -1 last; None: all) -> int32 [R, K], -1 last.
Choose = Callable[[Level, Tensor, int, Tensor | None], Tensor]


def spans(entries: int) -> list[int]:
    """Entries that a value of each level stands for, the scores' level first."""
    result = [1]
    while ceil_div(entries, result[-1]) > MOST and len(result) < LEVELS:
        result.append(result[-1] * GROUP)
    return result


def choose_level_by_level(levels: Sequence[Level], visible: Tensor, k: int, choose: Choose) -> Tensor:
    """The k best of the first `visible` entries of each row, as `choose` orders them: int32 [R, min(k, entries)]."""
    chosen = None
    for level in reversed(levels):
        chosen = choose(level, visible, min(k, level.values.shape[1]), chosen)
    assert chosen is not None
    return chosen


@jit
def ordered(score: tl.tensor) -> tl.tensor:
    """FP32 as int32 of the same order; -0 counts as 0."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 2147483647)


@jit
def visible_values(visible: tl.tensor, span: tl.tensor, N: tl.tensor) -> tl.tensor:
    """Of a row's N values, those that stand for a visible entry: they come first."""
    return tl.minimum((visible.to(tl.int32) + (span - 1)) // span, N)


@jit
def candidate_places(c: tl.tensor, groups: tl.tensor, M: tl.tensor, GROUP: tl.constexpr) -> tl.tensor:
    """Where in the row candidates c are; negative for those of no group. `groups` of the row; None: c itself."""
    if groups is None:
        return c
    else:  # noqa: RET505 - Triton compiles what follows a return
        return tl.load(groups + c // GROUP, mask=c < M, other=-1) * GROUP + c % GROUP
