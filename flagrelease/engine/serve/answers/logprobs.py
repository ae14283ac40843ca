"""Log-probabilities in the forms of OpenAI's completions and chats, and of vLLM's `prompt_logprobs`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from flagrelease.engine.batch.sequence import Event
from flagrelease.engine.json_line import json_line
from flagrelease.engine.sampling import Sampling
from flagrelease.engine.scores import TokenScore
from flagrelease.engine.serve.answers.written import Series, Written
from flagrelease.engine.serve.requests.refusals import ParameterError
from flagrelease.engine.text import Tokenizer

_LEAST = -9999.0  # stands for what JSON cannot say, minus infinity, as in OpenAI's and vLLM's answers

MOST_KEPT = 1 << 25  # log-probabilities of an answer that is sent whole: 256 MiB


def check_kept(asked: Iterable[tuple[Sequence[int], Sampling]], context: int, *, stream: bool) -> None:
    """Refuse a whole answer that could hold too many log-probabilities. A stream holds none.

    Raises:
        ParameterError: tells how many it would be.
    """
    count = 0
    for prompt, sampling in () if stream else asked:
        new = context - len(prompt) if sampling.max_tokens is None else sampling.max_tokens
        count += new * (sampling.logprobs + 1) if sampling.logprobs is not None else 0
        count += len(prompt) * (sampling.prompt_scores + 1) if sampling.prompt_scores is not None else 0
    if count > MOST_KEPT:
        raise ParameterError(
            f"the answer could hold {count:,} log-probabilities, of at most {MOST_KEPT:,}: lower max_tokens, n or the "
            "number of alternatives, or stream it",
            "logprobs",
        )


class Forms:
    """How scores are shown. A token that is no whole characters is spelt by its bytes, as OpenAI spells it."""

    def __init__(self, tokenizer: Tokenizer, count: int, *, as_ids: bool = False) -> None:
        """`count`: alternatives of each token. `as_ids`: tokens are called "token_id:7", as vLLM calls them."""
        self._tokenizer, self._count, self._as_ids = tokenizer, count, as_ids

    def chat(self, scores: Iterable[TokenScore]) -> Iterator[Written]:
        """Entries of a chat's `logprobs.content`."""
        for score in scores:
            top = self._alternatives(score) if self._count else []
            listed = ", ".join(f"{self._entry(token, logprob)}}}" for token, logprob in top)
            yield Written(f'{self._entry(score.token, score.logprob or 0.0)}, "top_logprobs": [{listed}]}}')

    def completion(self, scores: Iterable[tuple[int, TokenScore]]) -> dict[str, Iterable[Any]]:
        """A completion's `logprobs` of tokens with their places in the text. Its lists are made when they are read."""
        return {
            "tokens": Series(lambda: (self._name(score.token) for _, score in scores)),
            "token_logprobs": Series(lambda: (_shown(score.logprob) for _, score in scores)),
            "top_logprobs": Series(lambda: (self._top(score) for _, score in scores)),
            "text_offset": Series(lambda: (place for place, _ in scores)),
        }

    def prompt(self, scores: Iterable[TokenScore]) -> Iterator[Written | None]:
        """Entries of vLLM's `prompt_logprobs`: the prompt's own token, then the most likely ones."""
        for score in scores:
            if score.logprob is None:
                yield None
                continue
            listed = {score.token: (score.rank, score.logprob)}
            for n, (token, logprob) in enumerate(score.top[: self._count]):
                listed.setdefault(token, (n + 1, logprob))
            entries = (
                f'"{token}": {{"logprob": {_shown(logprob)!r}, "rank": {rank}, '
                f'"decoded_token": {self._decoded(token)}}}'
                for token, (rank, logprob) in listed.items()
            )
            yield Written(f"{{{', '.join(entries)}}}")

    def _alternatives(self, score: TokenScore) -> list[tuple[int, float]]:
        """The most likely tokens, and the one that was chosen, if it is none of them."""
        top = list(score.top[: self._count])
        if score.logprob is not None and all(token != score.token for token, _ in top):
            top.append((score.token, score.logprob))
        return top

    def _top(self, score: TokenScore) -> Written | None:
        """Alternatives by name. The chosen token has its name; another with the same one is called by its id."""
        if score.logprob is None:
            return None
        own = self._name(score.token)
        named: dict[str, float] = {}
        for token, logprob in self._alternatives(score):
            name = self._name(token)
            if token != score.token and (name == own or name in named):
                name = _id_name(token)
            named[name] = logprob
        return Written(f"{{{', '.join(f'{name}: {_shown(logprob)!r}' for name, logprob in named.items())}}}")

    def _entry(self, token: int, logprob: float) -> str:
        """A token of a chat without the last brace."""
        name, raw = _in_chat(self._tokenizer, token, self._as_ids)
        return f'{{"token": {name}, "logprob": {_shown(logprob)!r}, "bytes": {raw}'

    def _name(self, token: int) -> Written:
        return _in_completion(self._tokenizer, token, self._as_ids)

    def _decoded(self, token: int) -> str:
        return _in_chat(self._tokenizer, token, False)[0]


# tokens as JSON: most of those that are shown come again and again


@lru_cache(maxsize=1 << 15)
def _in_chat(tokenizer: Tokenizer, token: int, as_id: bool) -> tuple[str, str]:
    raw = tokenizer.bytes_of(token)
    return _id_name(token) if as_id else json_line(spelt(raw)), json_line(list(raw))


@lru_cache(maxsize=1 << 15)
def _in_completion(tokenizer: Tokenizer, token: int, as_id: bool) -> Written:
    if as_id:
        return _id_name(token)
    raw = tokenizer.bytes_of(token)
    return Written(json_line(text if (text := _text(raw)) is not None else "bytes:" + _escaped(raw)))


class Kept:
    """Scores of a whole answer, in 8 bytes for each log-probability and 24 for each token."""

    def __init__(self, count: int) -> None:
        """`count`: alternatives of each token that are kept."""
        self._count = count
        self._tokens, self._ranks, self._logprobs, self._places = array("i"), array("i"), array("f"), array("q")
        self._top_tokens, self._top_logprobs = array("i"), array("f")

    def add(self, scores: Iterable[tuple[int, TokenScore]]) -> None:
        """Append tokens with their places in the text."""
        for place, score in scores:
            self._places.append(place)
            self._tokens.append(score.token)
            self._ranks.append(score.rank)
            self._logprobs.append(score.logprob or 0.0)
            top = score.top[: self._count] if score.logprob is not None else [(0, 0.0)] * self._count
            self._top_tokens.extend(token for token, _ in top)
            self._top_logprobs.extend(logprob for _, logprob in top)

    def __iter__(self) -> Iterator[tuple[int, TokenScore]]:
        """The same again."""
        for n, (place, token, rank, logprob) in enumerate(
            zip(self._places, self._tokens, self._ranks, self._logprobs, strict=True)
        ):
            top = slice(n * self._count, (n + 1) * self._count)
            pairs = tuple(zip(self._top_tokens[top], self._top_logprobs[top], strict=True))
            yield place, TokenScore(token, logprob, pairs, rank) if rank else TokenScore(token, None)

    def scores(self) -> Iterator[TokenScore]:
        """Without the places."""
        return (score for _, score in self)


class PromptScores:
    """vLLM's `prompt_logprobs`, where they were asked for."""

    def __init__(self, sampling: Sampling, tokenizer: Tokenizer) -> None:
        """None of the prompt is scored yet."""
        count = sampling.prompt_logprobs
        self._kept = None if count is None else Kept(count)
        self._forms = Forms(tokenizer, count or 0)

    def take(self, event: Event) -> None:
        """Keep what an event brings."""
        if self._kept is not None:
            self._kept.add((0, score) for score in event.prompt_scores)

    def shown(self) -> dict[str, Any]:
        """The parameter's name and its list."""
        kept = self._kept
        return {} if kept is None else {"prompt_logprobs": Series(lambda: self._forms.prompt(kept.scores()))}


def spelt(raw: bytes) -> str:
    """The text of a token, or its bytes where they are no whole characters."""
    return text if (text := _text(raw)) is not None else _escaped(raw)


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _escaped(raw: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in raw)


def _id_name(token: int) -> Written:
    return Written(f'"token_id:{token}"')


def _shown(logprob: float | None) -> float | None:
    return logprob if logprob is None or logprob > _LEAST else _LEAST
