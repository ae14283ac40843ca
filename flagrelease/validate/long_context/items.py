"""The questions of one length: registers cut so that every prompt has exactly that many tokens of the model's own.

All depths of one register share its text, and only the end of the prompt differs, so that a server that keeps prefixes
reads a register once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Protocol

from flagrelease.errors import UsageError
from flagrelease.model.v4.efforts import Efforts
from flagrelease.model.v4.encoded import EncodedChat
from flagrelease.records.rules import ChatMode, ExamKind, LongContextRules
from flagrelease.validate.exams.exam import Exam, digest_of, encode_item
from flagrelease.validate.exams.items import Item
from flagrelease.validate.logits.sequence import Numbers
from flagrelease.validate.long_context.registers import FORMS, Form, Register
from flagrelease.validate.seeds import seed_of

VERSION = "registers 1"  # other texts by the same rules are another version: a recorded side is of other questions
_WORDS = (" and", " the", " of", " to", " in", " on", " at", " by", " for", " with")
_ROOM = 24  # tokens for a note, and for a question that is longer than the one a register was cut with
_SAMPLE = 8  # entries whose tokens tell how many a length takes
_ATTEMPTS = 8


class Encoder(Protocol):
    """What is needed of a tokenizer; `engine.text.Tokenizer` is one."""

    def encode(self, text: str | EncodedChat) -> list[int]:
        """Token ids."""
        ...


@dataclass(frozen=True, slots=True)
class LengthRules:
    """How the questions of one length are asked: `AskRules`, from those of the stage."""

    stage: LongContextRules
    length: int

    @property
    def title(self) -> str:
        """With the length, which is part of every seed."""
        return f"Long context, {self.length} tokens"

    @property
    def kind(self) -> ExamKind:
        """The value of an entry."""
        return "integer"

    @property
    def prompt(self) -> str:
        """Register and question are one."""
        return "{question}"

    @property
    def mode(self) -> ChatMode:
        """Of the stage."""
        return self.stage.mode

    @property
    def temperature(self) -> float:
        """Of the stage."""
        return self.stage.temperature

    @property
    def top_p(self) -> float:
        """Of the stage."""
        return self.stage.top_p

    @property
    def max_tokens(self) -> int:
        """Of the stage."""
        return self.stage.max_tokens

    @property
    def seed(self) -> int:
        """Of the stage."""
        return self.stage.seed


ContextExam = Exam[LengthRules]


def item_id(depth: float, number: int) -> str:
    """How answers name a question: its depth, and which register of its length it is about."""
    return f"{depth:g}/{number}"


def refuse_too_long(rules: LongContextRules, positions: int) -> None:
    """Refuse lengths that the model has no positions for.

    Raises:
        UsageError: names the length.
    """
    if (needed := rules.lengths[-1] + rules.max_tokens) > positions:
        raise UsageError(
            f"long_context: a prompt of {rules.lengths[-1]} tokens and an answer of {rules.max_tokens} need {needed} "
            f"positions; the model has {positions}"
        )


def make_exam(rules: LongContextRules, length: int, encoder: Encoder, efforts: Efforts) -> ContextExam:
    """The questions of one length, the same on every machine with the same tokenizer.

    Raises:
        UsageError: no prompt of the rules' form has exactly that length.
    """
    asked = LengthRules(rules, length)
    maker = _Maker(asked, FORMS[rules.form], lambda prompt: len(encoder.encode(encode_item(prompt, asked, efforts))))
    items = tuple(item for number in range(rules.items) for item in maker.items(number))
    return Exam(asked, VERSION, items, digest_of([item.identity for item in items]))


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A register, and the tokens of the prompt in which its first entry is asked for."""

    register: Register
    tokens: int


@dataclass(frozen=True, slots=True)
class _Maker:
    asked: LengthRules
    form: Form
    count: Callable[[str], int]  # tokens of a prompt in its chat

    def items(self, number: int) -> list[Item]:
        """The questions about one register, by depth."""
        rules = self.asked.stage
        try:
            fitted, short = self._fit(number)
        except ValueError as error:
            raise UsageError(f"long_context: {self.asked.length} tokens: {error}") from None
        register, made = fitted.register, []
        for depth in rules.depths:
            place = round(depth / 100 * (len(register.names) - 1))
            question = self.form.ask(register.names[register.asked_for(place, rules.hops)], rules.hops)
            prompt = self._filled(fitted, short, question)
            made.append(Item(item_id(depth, number), prompt, str(register.values[place])))
        return made

    def _draw(self, number: int, entries: int) -> _Fitted:
        seed = seed_of(self.asked.seed, self.asked.title, number) % (2**31 - 2) + 1
        register = self.form.draw(Numbers(seed), entries)
        first = self.form.ask(register.names[0], self.asked.stage.hops)
        return _Fitted(register, self.count(register.text + first))

    def _fit(self, number: int) -> tuple[_Fitted, _Fitted]:
        """The longest register behind which every question still fits, with its note; and the shortest that there is.

        Raises:
            ValueError: the form has none.
        """
        least = max(2, self.asked.stage.hops)
        short, longer = self._draw(number, least), self._draw(number, least + _SAMPLE)
        each = (longer.tokens - short.tokens) / _SAMPLE
        room = self.asked.length - (_ROOM if short.register.room else 0)
        drawn: dict[int, _Fitted] = {}
        entries = max(least, least + int((room - short.tokens) / each))
        while entries not in drawn:
            found = drawn[entries] = self._draw(number, entries)
            step = int((room - found.tokens) / each) or (1 if found.tokens <= room else -1)
            entries = max(least, entries + step)
        fitting = [found for found in drawn.values() if found.tokens <= room]
        if not fitting:
            raise ValueError(f"too few for {least} entries, a question and its chat, which have {short.tokens}")
        return max(fitting, key=lambda found: found.tokens), short

    def _filled(self, fitted: _Fitted, short: _Fitted, question: str) -> str:
        """Register and question, and between them a note of as many words as bring the prompt to its length.

        How many, a short register tells first: counting the tokens of a long one takes a second or more.
        """
        length, words = self.asked.length, 0
        aim = length - fitted.tokens + short.tokens  # tokens with the short register
        for _ in range(_ATTEMPTS if fitted.register.room else 1):
            end = question
            for _ in range(_ATTEMPTS if fitted.register.room else 0):
                end = f"Note:{''.join(islice(cycle(_WORDS), max(0, words)))}\n{question}"
                if not (off := aim - self.count(short.register.text + end)):
                    break
                words += off
            prompt = fitted.register.text + end
            if (tokens := self.count(prompt)) == length:
                return prompt
            aim += length - tokens
        raise UsageError(
            f"long_context: no {self.asked.stage.form} makes a prompt of exactly {length} tokens; one of {tokens} is "
            "possible"
        )
