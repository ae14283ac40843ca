"""Faults that would waste a whole run, noticed after its first answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flagrelease.errors import VerificationError
from flagrelease.validate.exams.answerer import Ask, AskRules, Reply
from flagrelease.validate.exams.side import ENOUGH_ANSWERS, LONG_ANSWER


class Suspicion:
    """Looks at the answers of one run as they come."""

    def __init__(self, rules: AskRules, prompt_tokens: Mapping[str, int], journal: Path) -> None:
        """`prompt_tokens`: by item, as far as another side has them. `journal`: where the answers are, for messages."""
        self._rules, self._prompt_tokens = rules, prompt_tokens
        self._remedy = f"mend that and remove {journal}"
        self._first: dict[str, str] = {}
        self._same = self._different = 0
        self._as_asked = self._otherwise = 0

    def look_at(self, ask: Ask, reply: Reply) -> None:
        """Take one answer into account.

        Raises:
            VerificationError: a prompt is longer or shorter than the other side's, no answer follows the mode, or every
                repeated question had the same long answer again.
        """
        if reply.prompt_tokens != (expected := self._prompt_tokens.get(ask.item, reply.prompt_tokens)):
            raise VerificationError(
                f"the prompt of {ask.item!r} has {reply.prompt_tokens} tokens, on the native side {expected}: another "
                f"chat format or tokenizer"
            )
        self._look_at_mode(reply)
        self._look_at_repeat(ask, reply)

    def _look_at_mode(self, reply: Reply) -> None:
        if reply.reasoned == (self._rules.mode != "chat"):
            self._as_asked += 1
        else:
            self._otherwise += 1
        if self._otherwise >= ENOUGH_ANSWERS and not self._as_asked:
            had = "had none" if self._rules.mode != "chat" else "had some"
            raise VerificationError(
                f"mode {self._rules.mode} was asked for, but as to reasoning all of {ENOUGH_ANSWERS} answers {had}; "
                f"does the server understand the switch? {self._remedy}"
            )

    def _look_at_repeat(self, ask: Ask, reply: Reply) -> None:
        if ask.item not in self._first:
            self._first[ask.item] = reply.whole_sha256
            return
        if reply.tokens < LONG_ANSWER:
            return
        if reply.whole_sha256 == self._first[ask.item]:
            self._same += 1
        else:
            self._different += 1
        if self._same >= ENOUGH_ANSWERS and not self._different:
            raise VerificationError(
                f"{ENOUGH_ANSWERS} repeats, each with a seed of its own and of {LONG_ANSWER} tokens or more, "
                f"were the first answer word for word: the server has a constant seed, or answers from a cache; "
                f"{self._remedy}"
            )
