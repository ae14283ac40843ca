"""`LoadedModel`: sequences of token ids in, logits and tokens out, whatever the family of the model.

A family says how one step runs. What is the same for all is here: sequences cut into steps, rows of caches that grow,
the vocabulary, and what is refused.

Legend: B rows, S tokens of a step, T tokens of a sequence, H hidden, V vocabulary, X what a family's pass leaves of a
position for `read_out`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators
from flagrelease.engine.numerics import Numerics
from flagrelease.engine.parallel import Groups
from flagrelease.engine.row_caches import RowCaches
from flagrelease.engine.sampling import Draws, Sampler, Sampling, choose
from flagrelease.engine.token_ids import token_list
from flagrelease.engine.transfer import send
from flagrelease.errors import ResourceError, UsageError
from flagrelease.model.config import FamilyConfig

if TYPE_CHECKING:
    from flagrelease.engine.token_ids import TokenIds

DEFAULT_CHUNK = 512  # tokens a step appends to a row at most; longer prompts take several steps
C = TypeVar("C", bound=FamilyConfig, covariant=True)
K = TypeVar("K", bound=RowCaches[Any])


@dataclass(slots=True)
class LoadedModel(ABC, Generic[C, K]):
    """A loaded model on one device, or this rank's part of one.

    Wherever a method takes the token ids of one sequence, they may be a list, a tensor or a numpy array: [T] integers.
    Under tensor parallelism every rank calls the same methods with the same arguments and gets the same results.

    Attributes:
        config: of the model.
        numerics: what is rounded where.
        ops: the operators.
        groups: the ranks.
        device: this rank's.
        embed: [V, H], this rank's rows.
        head: [V, H], this rank's rows.
        chunk: tokens that a step appends to a row at most.
    """

    config: C
    numerics: Numerics
    ops: Operators
    groups: Groups
    device: Device
    embed: Tensor
    head: Tensor
    chunk: int = field(default=DEFAULT_CHUNK, kw_only=True)

    # What a family says.

    @abstractmethod
    def allocate(self, rows: int, context: int, chunk: int, place: torch.device) -> K:
        """Empty caches; nothing is checked but the context.

        Raises:
            UsageError: the model does not go so far.
        """

    @abstractmethod
    def cover(self, context: int) -> None:
        """Make the tables of positions reach `context` of them."""

    @abstractmethod
    def run_step(self, cache: K, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """One step: [B, S, X] behind each token, and what draft stages read of it, [B, S, ..]; `cache` is extended.

        The rows' lengths are left to the caller, and so is what `advance` refuses.
        """

    @abstractmethod
    def read_out(self, behind: Tensor) -> Tensor:
        """[.., X] -> float32 logits [.., V]."""

    @property
    def most_drafts(self) -> int:
        """Tokens that the draft stages guess at once; 0: there are none, or the model was loaded without."""
        return 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said of this model when it is loaded, beside its numerics and operators."""
        return ()

    # What users call.

    def logits(self, token_ids: TokenIds) -> Tensor:
        """Logits after every token of one sequence: float32 [T, V] on the CPU. Nothing is kept."""
        token_ids = token_list(token_ids)
        cache = self.new_cache(rows=1, context=len(token_ids))
        return torch.cat([logits.cpu() for logits in self.prefill_each(cache, 0, token_ids)])

    def new_cache(self, rows: int, context: int) -> K:
        """Empty caches for `rows` sequences of at most `context` tokens.

        Raises:
            UsageError: the model does not go so far.
            ResourceError: the device has no room.
        """
        wanted = self.cache_bytes(rows, context, self.chunk)
        free, _ = self.device.memory()
        if wanted > free:
            raise ResourceError(
                f"caches for {rows} sequences of {context} tokens take {wanted / 1e9:.1f} GB; the device has "
                f"{free / 1e9:.1f} GB left: ask for fewer sequences or a shorter context"
            )
        self.cover(context)
        return self.allocate(rows, context, min(self.chunk, context), self._place)

    def cache_bytes(self, rows: int, context: int, chunk: int) -> int:
        """Bytes that caches for `rows` sequences take whose steps append at most `chunk` tokens; nothing is allocated.

        Raises:
            UsageError: the model does not go so far.
        """
        return self.allocate(rows, context, min(chunk, context), torch.device("meta")).nbytes

    def prefill(self, cache: K, row: int, token_ids: TokenIds) -> Tensor:
        """Append a prompt, or more of one, to one row; return the logits after its last token, float32 [V]."""
        part, token_ids = cache.view(row), token_list(token_ids)
        logits = self.extend(part, [token_ids])
        cache.lengths[row] = part.lengths[0]
        return logits[0]

    def prefill_each(self, cache: K, row: int, token_ids: TokenIds) -> Iterator[Tensor]:
        """Like `prefill`, but the logits after every token: float32 [S, V], a chunk of the sequence at a time."""
        part, token_ids = cache.view(row), token_list(token_ids)
        for logits, _ in self._steps(part, [token_ids], every=True):
            cache.lengths[row] = part.lengths[0]
            yield logits[0]

    def generate(self, token_ids: TokenIds, sampling: Sampling) -> list[int]:
        """Continue one sequence, up to `sampling.max_tokens` or an EOS, which is not returned.

        Stop strings need a tokenizer, and batches a scheduler: see `scheduler.generate_all`.
        """
        token_ids = token_list(token_ids)
        longest = self.config.max_position_embeddings - len(token_ids)
        limit = longest if sampling.max_tokens is None else sampling.max_tokens
        cache = self.new_cache(rows=1, context=len(token_ids) + limit)
        logits, sampler, made = self.prefill(cache, 0, token_ids), Sampler(sampling), list[int]()
        while len(made) < limit:
            draws = Draws.of([sampler.at(len(made))], self._place)
            token = self.groups.from_leader(choose(self.ops, logits[None], draws)[0])
            if token == self.config.eos_token_id:
                break
            made.append(token)
            if len(made) < limit:
                logits = self.decode(cache, [token])[0]
        return made

    def decode(self, cache: K, token_ids: Sequence[int | None]) -> Tensor:
        """Append one token to every row (None: to this row nothing); return the logits after it, float32 [B, V].

        The result of a row that got None means nothing.
        """
        return self.extend(cache, [[] if token is None else [token] for token in token_ids])

    def extend(self, cache: K, token_ids: Sequence[TokenIds]) -> Tensor:
        """Append `token_ids[b]` to row b, any number of tokens each; return the logits after each row's last.

        Returns:
            float32 [B, V]; a row that got no tokens has a result without meaning.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        after = torch.zeros(len(token_ids), self.config.vocab_size, dtype=torch.float32, device=self._place)
        for logits, rows in self._steps(cache, [token_list(each) for each in token_ids], every=False):
            after[rows] = logits[rows, 0]
        return after

    def advance(self, cache: K, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append at most `cache.chunk` tokens to every row in one step; return what is behind each, [B, S, X].

        `read_out` makes logits of it. A row with fewer than S tokens has no meaning at its end.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        return self.advance_watched(cache, token_ids)[0]

    def advance_watched(self, cache: K, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Like `advance`; and what draft stages read of each position, [B, S, ..]: what is behind it, or features."""
        self.check_rows(cache, token_ids)
        assert max(map(len, token_ids)) <= cache.chunk, "one step appends at most a chunk"
        return self._grow(cache, token_ids)

    # From sequences to steps.

    def _steps(
        self, cache: K, token_ids: Sequence[Sequence[int]], *, every: bool
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Run steps of at most `chunk` tokens a row.

        Yields logits [B, S or 1, V] and the rows whose last token the step held.
        """
        self.check_rows(cache, token_ids)
        for start in range(0, max(map(len, token_ids)), cache.chunk):
            part = [tokens[start : start + cache.chunk] for tokens in token_ids]
            behind = self._grow(cache, part)[0]
            if not every:
                last = send(torch.tensor([max(len(tokens) - 1, 0) for tokens in part]), behind.device)
                behind = behind[torch.arange(len(part), device=behind.device), last][:, None]
            ended = [row for row, tokens in enumerate(token_ids) if start < len(tokens) <= start + cache.chunk]
            yield self.read_out(behind), ended

    def _grow(self, cache: K, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        made = self.run_step(cache, token_ids)
        for row, tokens in enumerate(token_ids):
            cache.lengths[row] += len(tokens)
        return made

    def check_rows(self, cache: K, token_ids: Sequence[Sequence[int]]) -> None:
        """Refuse tokens that the model or a row has no place for.

        Raises:
            UsageError: a row would pass the cache's context, an id is not in the vocabulary, or no row gets a token.
        """
        if not any(token_ids):
            raise UsageError("no tokens: a sequence needs at least one")
        for row, tokens in enumerate(token_ids):
            for token in tokens:
                if not 0 <= token < self.config.vocab_size:
                    raise UsageError(f"token id {token}: the vocabulary has {self.config.vocab_size}")
            cache.check_room(row, len(tokens))

    # The vocabulary.

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [..] -> [.., H]."""
        first = self.groups.rank * self.embed.shape[0]
        return self.groups.all_sum(self.ops.embedding(tokens, self.embed, first))

    def to_logits(self, x: Tensor) -> Tensor:
        """Hidden [.., H] -> float32 [.., V]."""
        return self.groups.gather_vocab(self.ops.linear(x, self.head, torch.float32))

    @property
    def _place(self) -> torch.device:
        """Where tensors are."""
        return self.head.device


AnyModel = LoadedModel[FamilyConfig, Any]
