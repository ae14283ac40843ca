r"""The answer in what a model wrote. What follows none of the forms below is invalid; nothing is guessed.

Only the text after the reasoning counts. The forms, the first that is met:

1. the last `\boxed{...}` that is not empty, if it holds an answer: `\boxed{\text{B}}`, `\boxed{(B) 3 m}`, `\boxed 70`
2. the last statement: "Answer: B", "The answer is (B).", "the correct option is **B**"
3. a line that is nothing but the answer: "B", "(B)", "**B**", "$70$"; no two such lines may differ

A letter is A to D. An integer is returned in its shortest form: "027" and "27" are the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from flagrelease.model.v4.chat import END_THINK
from flagrelease.validate.exams.latex import after_last_box, last_box, right_of_equals, unwrap
from flagrelease.validate.exams.numbers import read_number

_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°")
_LETTER = re.compile(
    r"(?:(?i:option|choice|answer)\s*:?\s*)?(?:\(([A-D])\)(?:[\s.:,].*)?|([A-D])(?:[).:](?:\s.*)?)?)", re.DOTALL
)
_THIN_SPACE = re.compile(r"(?<=\d)\\,(?=\d)")  # between groups of three
_INTEGER = re.compile(r"([+-]?) *(\d{1,18}|\d{1,3}(?:,\d{3}){1,5})")  # longer ones are the loop of a broken model
_SAID = (
    r"(?:\b(?i:answer|correct\s+(?:option|choice))|答案)(?i:\s+to\s+(?:this|the)\s+(?:question|problem))?"
    r"(?:[\s*_]*(?:(?i:is|was|must\s+be|would\s+be|should\s+be)\b|[:：=是为]))+(?:[\s*_]*(?i:option|choice|letter)\b)?"
    r"(?:[\s*_$(\[\"'`]|\\[(\[]|\\[a-z]+\{)*"
)
_SAID_LETTER = re.compile(_SAID + r"([A-D])(?![\w'’-])(?!\W{0,4}(?:or|and)\W{1,4}[A-D]\b|\)?/|\)?,\s*\(?[A-D]\b)")
_ANOTHER_INTEGER = (  # "12 or 13" is no answer, and neither is "12, 13"
    r"\W{0,4}(?:text\{\s*)?(?:or|and|to|或|和|与)\W{0,4}\d|[\s*$)]*[,;，；、][\s*$(]*[+-]?\d|[ \t]+[+-]?\d"
)
_SAID_INTEGER = re.compile(
    _SAID + r"([+-]?\d+(?:,\d{3})*)(?!\d|[.,]\d|\w|\s*[\^/+=×·]|\s*-\s*\d|\*(?!\*)|\\(?![)\]])|"
    rf"{_ANOTHER_INTEGER})"
)
_SAID_NUMBER = re.compile(
    rf"(?:{_SAID}|^####\s*)([+-]?(?:\\?\$)?\d[\d,]*(?:\.\d+)?)(?!\d|\w|\s*[\^/+=×·]|\s*-\s*\d|\*(?!\*)|\\(?![)\]%])|"
    rf"{_ANOTHER_INTEGER})",
    re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\b(?:I(?:['’]m| am) (?:sorry|unable|not able)|I (?:can(?:not|['’]t)|won['’]t) "
    r"(?:help|assist|answer|provide|comply)|as an AI\b)|无法(?:回答|提供)|不能(?:回答|提供)|抱歉",
    re.IGNORECASE,
)
_REFUSED_SOON = 400  # characters: a refusal comes first
_DECORATION = " \t*_$()[].\\"


Extracted = Literal["multiple-choice", "integer", "number"]  # kinds whose answers are read and compared as texts


def final_text(text: str, *, reasons: bool) -> str:
    """What follows the reasoning. A model that reasons and never came to an end of it has answered nothing."""
    _, ended, after = text.rpartition(END_THINK)
    return after if ended else "" if reasons else text


def refuses(text: str) -> bool:
    """Whether an answer declines to answer, in the words that models have for it."""
    return bool(_REFUSAL.search(text[:_REFUSED_SOON]))


def read_letter(text: str) -> str | None:
    """The letter in the inside of a box: `B`, `(B)`, `B.`, `(B) 3 m`, `\\text{B}`."""
    found = _LETTER.fullmatch(unwrap(text).strip(" \t\n*$"))
    return None if found is None else found[1] or found[2]


def read_integer(text: str) -> str | None:
    """An integer alone or right of the last equals sign, as text: `027`, `1{,}070`, `m+n=70`, `70^\\circ`."""
    text = _THIN_SPACE.sub(",", _DEGREES.sub("", unwrap(text))).replace("{,}", ",").replace("\\,", "")
    right = right_of_equals(text)
    found = None if right is None else _INTEGER.fullmatch(right.strip(" \t\n*$.").replace("\\!", ""))
    return None if found is None else str(int(found[1] + found[2].replace(",", "")))


_READERS: dict[Extracted, tuple[Callable[[str], str | None], re.Pattern[str]]] = {
    "multiple-choice": (read_letter, _SAID_LETTER),
    "integer": (read_integer, _SAID_INTEGER),
    "number": (read_number, _SAID_NUMBER),
}


def extract(text: str, kind: Extracted) -> str | None:
    """The answer in `text`, which has no reasoning in front of it any more; None if it has none."""
    read, said = _READERS[kind]
    box = last_box(text)
    if box is not None and (answer := read(box)) is not None:
        return answer
    if kind != "multiple-choice":  # a box without an option may be a value on the way; one without a number is the end
        text = after_last_box(text)
    if statements := said.findall(text.replace("{,}", ",")):
        return read(statements[-1])
    alone = {answer for line in text.splitlines() if (answer := _alone(line, read)) is not None}
    return alone.pop() if len(alone) == 1 else None


def _alone(line: str, read: Callable[[str], str | None]) -> str | None:
    bare = unwrap(line).strip(_DECORATION)
    return read(bare) if re.fullmatch(r"[A-D]|-?\d[\d,]*", bare) else None
