"""What is asked: the texts of the behaviour prompts, and questions to registers of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flagrelease.records.rules import InvarianceRules
from flagrelease.validate.behaviour.prompts import bundled_prompts
from flagrelease.validate.invariance.questions import register_questions


@dataclass(frozen=True, slots=True)
class InvariancePrompt:
    """One user's turn.

    Attributes:
        id: unique.
        answer: the number that is right, of a question to a register.
        length: that its register was made for.
        shares: whether an earlier prompt began as this one does, but for its last line.
    """

    id: str
    content: str
    answer: int | None = None
    length: int | None = None
    shares: bool = False


def invariance_prompts(rules: InvarianceRules, length: Callable[[str], int]) -> list[InvariancePrompt]:
    """All of them, in the order in which they are sent; `length` counts the tokens of a text."""
    texts = [prompt for prompt in bundled_prompts() if prompt.wish == "text" and len(prompt.messages) == 1]
    made = [InvariancePrompt(prompt.id, prompt.messages[0]["content"]) for prompt in texts[: rules.texts]]
    for number, tokens in enumerate(rules.lengths):
        questions = register_questions(rules.form, tokens, rules.questions, number, length)
        made += [
            InvariancePrompt(f"{rules.form}-{tokens}-{n + 1}", asked.text, asked.answer, tokens, shares=n > 0)
            for n, asked in enumerate(questions)
        ]
    return made


def right_answers(prompts: Sequence[InvariancePrompt]) -> dict[str, int]:
    """By prompt, of those that have one."""
    return {prompt.id: prompt.answer for prompt in prompts if prompt.answer is not None}


def register_lengths(prompts: Sequence[InvariancePrompt]) -> dict[str, int]:
    """By prompt, of questions to registers."""
    return {prompt.id: prompt.length for prompt in prompts if prompt.length is not None}
