"""Two faults of an endpoint that waste a whole run, noticed after its first answers."""

from __future__ import annotations

from flagrelease.errors import VerificationError
from flagrelease.validate.benchmarks.answerer import Ask, Reply
from flagrelease.validation_rules import BenchmarkRules

_ENOUGH = 16  # answers; by chance a sound server does not go wrong in all of them
_LONG = 64  # tokens; shorter answers may well be the same text


class Suspicion:
    """Looks at the answers of one run as they come."""

    def __init__(self, rules: BenchmarkRules) -> None:
        """Nothing has come yet."""
        self._rules = rules
        self._first: dict[str, str] = {}
        self._same = self._different = 0
        self._as_asked = self._otherwise = 0

    def look_at(self, ask: Ask, reply: Reply) -> None:
        """Take one answer into account.

        Raises:
            VerificationError: no answer follows the mode, or every repeated question had the same long answer again.
        """
        if reply.reasoned == (self._rules.mode != "chat"):
            self._as_asked += 1
        else:
            self._otherwise += 1
        if self._otherwise >= _ENOUGH and not self._as_asked:
            had = "had none" if self._rules.mode != "chat" else "had some"
            raise VerificationError(
                f"mode {self._rules.mode} was asked for, but as to reasoning all of {_ENOUGH} answers {had}; "
                f"does the server understand the switch?"
            )
        if ask.item not in self._first:
            self._first[ask.item] = reply.whole_sha256
            return
        if reply.tokens < _LONG:
            return
        if reply.whole_sha256 == self._first[ask.item]:
            self._same += 1
        else:
            self._different += 1
        if self._same >= _ENOUGH and not self._different:
            raise VerificationError(
                f"{_ENOUGH} repeats of an answer, each with a seed of its own and of {_LONG} tokens or more, were the "
                f"first one word for word: the server has a constant seed, or answers from a cache"
            )
