"""Operators of any provider with FP8 emulated: the same kernels, given codes as bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from flagrelease.engine.kernels.emulation import emulated_fp8
from flagrelease.engine.kernels.operators import OPERATORS, V41_OPERATORS, Operators

P = ParamSpec("P")
R = TypeVar("R")


def emulating(ops: Operators) -> Operators:
    """The operators of `ops` with FP8 emulated inside each call; its name, which reports have, says so."""
    emulated = copy.copy(ops)
    emulated.name = f"{ops.name} (FP8 emulated)"
    for name in (*OPERATORS, *V41_OPERATORS, "arrange_experts", "hc_post_mixes_over_ranks"):
        operator = getattr(ops, name)
        if operator is not None:
            setattr(emulated, name, _emulated(operator))
    return emulated


def _emulated(operator: Callable[P, R]) -> Callable[P, R]:
    @wraps(operator)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with emulated_fp8():
            return operator(*args, **kwargs)

    return call
