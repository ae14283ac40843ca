"""How many drafts were right: counted by their place, so that a reader sees how far a draft stage can look ahead."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts of drafts, of one sequence or of many.

    Attributes:
        verifications: steps for which a sequence had been given drafts. Each brings one token, and one more for each
            draft that was right, even where the confidence stop let no draft be verified.
        verified: of drafts at each place (the first is the one after the known token), how many the model judged.
        accepted: how many of those were right. A right guess behind a wrong one does not count.
    """

    verifications: int = 0
    verified: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    @classmethod
    def of_step(cls, verified: int, accepted: int) -> Acceptance:
        """One step of one sequence: so many drafts were verified, of which the first `accepted` were right."""
        return cls(1, (1,) * verified, (1,) * accepted + (0,) * (verified - accepted))

    def __add__(self, other: Acceptance) -> Acceptance:
        """Both together."""
        return Acceptance(
            self.verifications + other.verifications,
            _sums(self.verified, other.verified),
            _sums(self.accepted, other.accepted),
        )

    def __sub__(self, earlier: Acceptance) -> Acceptance:
        """What came since `earlier`, an older state of the same counts."""
        minus = Acceptance(
            -earlier.verifications, tuple(-n for n in earlier.verified), tuple(-n for n in earlier.accepted)
        )
        return self + minus

    @property
    def drafts(self) -> int:
        """Drafts that were verified."""
        return sum(self.verified)

    @property
    def right(self) -> int:
        """Drafts that were accepted."""
        return sum(self.accepted)

    @property
    def tokens_per_verification(self) -> float | None:
        """Mean tokens that a verification brought: the model's own one and the right drafts. None without any."""
        return 1 + self.right / self.verifications if self.verifications else None

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each place, in what share of all verifications its draft was right: they add up to the mean above 1."""
        return tuple(count / self.verifications for count in self.accepted) if self.verifications else ()

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verifications": self.verifications,
            "verified_by_place": list(self.verified),
            "accepted_by_place": list(self.accepted),
            "tokens_per_verification": self.tokens_per_verification,
        }

    def __str__(self) -> str:
        """For people: `2.41 tokens a verification (by place: 71%, 44%, 26%)`."""
        mean = self.tokens_per_verification
        if mean is None:
            return "no drafts"
        return f"{mean:.2f} tokens a verification (by place: {', '.join(f'{share:.0%}' for share in self.shares)})"


def _sums(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(one, other, fillvalue=0))


NO_DRAFTS = Acceptance()
