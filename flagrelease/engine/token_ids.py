"""Token ids as callers have them: a list, a tensor, a numpy array."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flagrelease.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    TokenIds = Sequence[int] | Tensor | NDArray[Any]


def token_list(token_ids: TokenIds) -> list[int]:
    """The ids of one sequence, [T] integers on any device, as a list of Python integers.

    Raises:
        UsageError: numbers that are not integers, or more or fewer than one dimension.
    """
    shape = getattr(token_ids, "shape", None)
    if shape is not None and len(shape) != 1:
        raise UsageError(
            f"token ids of shape {list(shape)}: one sequence has one dimension, [T]; of a batch give one row at a time"
        )
    values: Any = token_ids if shape is None else token_ids.tolist()  # type: ignore[union-attr]
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError("'bool' object")
        ids = [index(value) for value in values]
    except TypeError as error:
        raise UsageError(f"token ids are integers; {error}") from error
    return ids
