"""What reads pieces of prompts into the rows of a cache: passes of fixed sizes, or plain steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from flagrelease.engine.decode.stepper import passes_are_captured
from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.row_caches import RowCaches
from flagrelease.engine.v4.cache import Cache
from flagrelease.engine.v4.model import Model
from flagrelease.engine.v4.reader import Reader


class PromptReader(Protocol):
    """Legend: B rows, S tokens of the longest piece, X as in `LoadedModel`."""

    def read(self, first: int, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Append at most a chunk of tokens to each of the rows from `first` on, as `LoadedModel.advance_watched`.

        Returns:
            What is behind each token, [B, S, X], and what draft stages read of it, [B, S, ..]. The next call may
            overwrite both.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """

    def forget(self) -> None:
        """Let go of captured passes."""


class PlainReader:
    """By the model's plain steps."""

    def __init__(self, model: AnyModel, cache: RowCaches[Any]) -> None:
        """Nothing is read yet."""
        self._model, self._cache = model, cache

    def read(self, first: int, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See `PromptReader`."""
        rows = slice(first, first + len(token_ids))
        part = self._cache.view(rows)
        read = self._model.advance_watched(part, token_ids)
        self._cache.lengths[rows] = part.lengths
        return read

    def forget(self) -> None:
        """See `PromptReader`: there is nothing."""


def open_reader(model: AnyModel, cache: RowCaches[Any]) -> PromptReader:
    """The fastest for this model and its device."""
    if isinstance(model, Model) and isinstance(cache, Cache):
        return Reader(model, cache, fixed=passes_are_captured(model))
    return PlainReader(model, cache)
