"""What both runs read: the bundled documents or the user's own, as token ids.

The bundled set is English and Chinese prose, code (`text/`, all of it this project's own), worked mathematics and long
contexts (`worked.py`, `long.py`: written by rule). A text begins with BOS and must come back from its tokens as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from flagrelease.errors import UsageError
from flagrelease.records.rules import ReplayRules
from flagrelease.strict_json import parse_json
from flagrelease.validate.logits.long import long_documents
from flagrelease.validate.logits.worked import worked_documents

LONG = "long"  # the kind whose documents may have `long_tokens`
_BUNDLED = ("english", "chinese", "code")
_HEADING = "=== "
_SHORTEST = 3  # tokens: the scores of two that follow one


class Encoder(Protocol):
    """What is needed of a tokenizer; `engine.text.Tokenizer` is one."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """A document as it was given: a text, or token ids (`content`)."""

    name: str
    kind: str
    content: str | tuple[int, ...]

    def to_json(self) -> str:
        """A line of `documents.jsonl`, which `read_documents` reads."""
        key = "text" if isinstance(self.content, str) else "tokens"
        return json.dumps({"name": self.name, "kind": self.kind, key: self.content}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it is read: at least three tokens."""

    name: str
    kind: str
    tokens: tuple[int, ...]


def bundled_documents() -> tuple[Given, ...]:
    """The project's own set; kinds take turns, so that the first few hold every kind."""
    kinds = [_sections(kind) for kind in _BUNDLED]
    kinds += [
        [Given(name, "mathematics", text) for name, text in worked_documents()],
        [Given(name, LONG, text) for name, text in long_documents()],
    ]
    longest = max(map(len, kinds))
    return tuple(documents[n] for n in range(longest) for documents in kinds if n < len(documents))


def _sections(kind: str) -> list[Given]:
    """Of a file of texts, each below a line `=== name`."""
    text = resources.files("flagrelease.validate.logits").joinpath("text", f"{kind}.txt").read_text(encoding="utf-8")
    parts = text.removeprefix(_HEADING).split(f"\n{_HEADING}")
    return [Given(name, kind, body) for name, _, body in (part.partition("\n") for part in parts)]


def read_documents(path: Path) -> tuple[Given, ...]:
    """A user's own set: a JSONL file, `{"name": .., "kind": .., "text": ..}` a line, or `"tokens": [ids]` for text.

    A line ends at a line feed only: JSON may hold every other character at which `splitlines` would cut. Empty lines
    hold no document, but they count for the line numbers in errors.

    Raises:
        UsageError: the file is not that, names a document twice, or holds none.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    given = tuple(_given(f"{path}: line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
    names = [document.name for document in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not given:
        raise UsageError(f"{path}: " + (f"two documents are called {twice!r}" if given else "no document in it"))
    return given


def _given(where: str, line: bytes) -> Given:
    try:
        record: Any = parse_json(line)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    if not isinstance(record, dict) or set(record) not in ({"name", "kind", "text"}, {"name", "kind", "tokens"}):
        raise UsageError(f"{where}: an object with name, kind and either text or tokens is expected")
    content = record.get("text", record.get("tokens"))
    if isinstance(content, list) and all(type(token) is int and token >= 0 for token in content):
        content = tuple(content)
    strings = (record["name"], record["kind"])
    if not all(isinstance(text, str) and text for text in strings) or not isinstance(content, (str, tuple)):
        raise UsageError(f"{where}: name, kind and text are texts, tokens a list of ids")
    return Given(record["name"], record["kind"], content)


def tokenise(
    given: Sequence[Given], encoder: Encoder | None, rules: ReplayRules, bos: int, context: int
) -> tuple[Document, ...]:
    """The first documents as token ids, cut to the rules' lengths and the model's `context`.

    Args:
        given: what was given; a document of token ids is taken as it is, a text gets `bos` in front.
        encoder: of the release; None if it has no tokenizer, which only token ids can do without.
        rules: how many, and how long.
        bos: id of the token that begins a text.
        context: positions the model has.

    Raises:
        UsageError: a text without tokenizer, one that does not come back from its tokens, or a document too short.
    """
    documents = []
    for document in given[: rules.documents]:
        limit = min(rules.long_tokens if document.kind == LONG else rules.tokens, context)
        tokens = document.content
        if isinstance(tokens, str):
            tokens = (bos, *_encode(document.name, tokens, encoder))
        if len(tokens) < _SHORTEST:
            raise UsageError(f"document {document.name!r}: {len(tokens)} tokens; at least {_SHORTEST} are needed")
        documents.append(Document(document.name, document.kind, tokens[:limit]))
    return tuple(documents)


def _encode(name: str, text: str, encoder: Encoder | None) -> list[int]:
    if encoder is None:
        raise UsageError(f"document {name!r} is a text, and the release has no tokenizer.json: give token ids")
    tokens = encoder.encode(text)
    if encoder.decode(tokens) != text:
        raise UsageError(
            f"document {name!r}: the release's tokenizer does not give the text back from its tokens, so it was not "
            "made for such text: give documents of token ids"
        )
    return tokens


def digest(documents: Sequence[Document]) -> str:
    """SHA-256 over names, kinds and token ids: two runs with the same one have read the same."""
    record = [[document.name, document.kind, document.tokens] for document in documents]
    return hashlib.sha256(json.dumps(record, separators=(",", ":")).encode()).hexdigest()
