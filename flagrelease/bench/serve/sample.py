"""One request as its caller saw it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestSample:
    """Times are seconds since the request was sent.

    Attributes:
        failure: None, or what went wrong, in a word or two that failures of one kind share: "429", "cut", "garbage".
        detail: the failure in full.
        arrivals: when each piece of text came.
        ended: when the answer was whole, or had failed.
        prompt_tokens: as the server counted them; None if it does not say.
        tokens: of the answer, by the server; if it does not say, the pieces are counted.
        counted: whether the server said.
        retry_after: seconds that the server asks to wait.
    """

    failure: str | None
    detail: str
    arrivals: tuple[float, ...]
    ended: float
    prompt_tokens: int | None
    tokens: int
    counted: bool
    retry_after: float = 0.0

    @property
    def first(self) -> float | None:
        """Time to the first text."""
        return self.arrivals[0] if self.arrivals else None

    @property
    def per_token(self) -> float | None:
        """Mean time of the tokens after the first."""
        if len(self.arrivals) < 2 or self.tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)

    @property
    def longest_gap(self) -> float | None:
        """The longest time without new text, after the first."""
        return max((b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)), default=None)
