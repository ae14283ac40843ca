"""Seeds and greedy answers: what a stage repeats must come again, and what it draws anew must not."""

from __future__ import annotations

import math

from flagrelease.validate.endpoint.replies import ChatReply, Unsupported
from flagrelease.validate.invariance.difference import difference
from flagrelease.validate.invariance.said import said_of
from flagrelease.validate.preflight.answers import Answers, first_refusal
from flagrelease.validate.preflight.check import PreflightCheck, judged


def judge_greedy(answers: Answers, tie: float) -> PreflightCheck:
    """The same request at temperature 0, several times; other texts are allowed where they part at a near tie."""
    asked, expected = f"a question at temperature 0, {len(answers)} times", "the same answer each time"
    came = [reply for reply in answers if isinstance(reply, ChatReply)]
    if len(came) < 2:
        return judged("greedy", asked, expected, first_refusal(answers), "not-shown")
    first = said_of("first", "question", came[0])
    found = [difference(first, said_of("other", "question", reply), tie) for reply in came[1:]]
    partings = {each.parting for each in found}
    if partings == {"none"}:
        return judged("greedy", asked, expected, f"the same {len(came)} times", "pass")
    if "clear margin" in partings:
        worst = next(each for each in found if each.parting == "clear margin")
        came_ = f"another answer from token {worst.at + 1} on, where the model was {worst.margin:.2f} nats sure"
        return judged("greedy", asked, expected, came_, "fail")
    if "unknown margin" in partings:
        return judged("greedy", asked, expected, "other answers, and no log-probabilities that explain them", "fail")
    return judged("greedy", asked, expected, f"other answers, all parting at near ties below {tie:g} nats", "pass")


def judge_seeds(same: Answers, others: Answers, chance: float) -> PreflightCheck:
    """At temperature 1 a seed gives its answer again, and other seeds give others.

    Args:
        same: answers with one seed.
        others: answers, each with a seed of its own.
        chance: if another seed would give the same answer with more than this probability, nothing is shown.
    """
    asked = f"a question at temperature 1, {len(same)} times with one seed, {len(others)} times with others"
    expected = "the same answer for the one seed, others for the others"
    if refused := [reply for reply in (*same, *others) if isinstance(reply, Unsupported)]:
        return judged("seeds", asked, expected, refused[0].told, "fail")
    texts = [reply.content for reply in same if isinstance(reply, ChatReply)]
    drawn = [reply.content for reply in others if isinstance(reply, ChatReply)]
    again, anew = len(set(texts)) < len(texts), set(drawn) != {texts[0]}
    if again and anew:
        return judged("seeds", asked, expected, f"{len(set(drawn))} answers of {len(drawn)} other seeds", "pass")
    if not again:
        return judged("seeds", asked, expected, "another answer to the same seed each time", "fail")
    likely = _chance_of(same[0])
    if likely is None or likely ** len(drawn) > chance:
        said = "with a probability that nobody told" if likely is None else f"each with a probability of {likely:.2f}"
        return judged("seeds", asked, expected, f"one answer to all seeds, {said}", "not-shown")
    return judged("seeds", asked, expected, "one answer to all seeds: they, or the temperature, are not read", "fail")


def _chance_of(reply: ChatReply | Unsupported) -> float | None:
    """The probability of the whole answer, by its tokens."""
    tokens = None if isinstance(reply, Unsupported) else reply.logprobs
    if not tokens or any(token.logprob is None for token in tokens):
        return None
    return math.exp(min(0.0, sum(token.logprob or 0.0 for token in tokens)))
