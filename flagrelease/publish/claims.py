"""What a card claims: each sentence with its status and with the record that it rests on, or it is not rendered.

A section of a card gives lines. Plain text may only be a heading, a line of code, or empty; `Advice` tells a reader
what to do. Whatever says something of the release is a `Claim` or a `Row`, which cannot be made without a status and a
record, and the record must be there: `Claims` looks it up in the documents that are published, or in the tables that
flagrelease brings along. The same claims are published as `claims.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from flagrelease.errors import VerificationError
from flagrelease.plain_yaml import parse_yaml
from flagrelease.publish.hubs.names import REPORT_NAME
from flagrelease.publish.records import Records
from flagrelease.records.manifest import MANIFEST_NAME

Status = Literal["proved", "measured", "inferred", "not run"]
MEANINGS: dict[Status, str] = {
    "proved": "compared exactly, by a second implementation or by a digest",
    "measured": "a figure of a run, with what it was measured on",
    "inferred": "concluded from records and documents, and not tried",
    "not run": "nobody has tried it",
}
CHIPS, STACKS, RECIPE = "chips.yaml", "stacks.yaml", "recipe"  # flagrelease's own tables, and what was asked for


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a claim can be looked up.

    Attributes:
        file: of the publication, or `CHIPS` or `STACKS` of this version of flagrelease, or `RECIPE`, which is in the
            manifest or in the statement.
        pointer: into it (RFC 6901).
    """

    file: str
    pointer: str


def manifest(pointer: str) -> Evidence:
    """A place in manifest.json."""
    return Evidence(MANIFEST_NAME, pointer)


def report(pointer: str) -> Evidence:
    """A place in report.json."""
    return Evidence(REPORT_NAME, pointer)


def of_stack(name: str) -> Evidence:
    """What flagrelease knows of a serving stack."""
    return Evidence(STACKS, f"/stacks/{name}")


def of_chip(name: str) -> Evidence:
    """What flagrelease knows of a chip."""
    return Evidence(CHIPS, f"/chips/{name}")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence about the release. Only what was not run may rest on nothing: nothing is what there is.

    Attributes:
        bullet: it is an item of a list, and not a paragraph.
    """

    status: Status
    evidence: Evidence | None
    text: str
    bullet: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table whose last column, added here, is the status."""

    status: Status
    evidence: Evidence | None
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """The head of a table of `Row`s."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """Text that tells the reader what to do or how to read on, and says nothing of the release."""

    text: str


Line = str | Claim | Row | Columns | Advice


class Claims:
    """The records of one release, and what may be said because of them."""

    def __init__(self, records: Records) -> None:
        """Open the documents in which claims are looked up."""
        self._records = records
        told = records.manifest
        self._documents: dict[str, Any] = {
            MANIFEST_NAME: {**told.model_dump(mode="json", exclude={"tensors"}), "tensors": sorted(told.tensors)},
            RECIPE: records.recipe_document,
            CHIPS: _table(CHIPS),
            STACKS: _table(STACKS),
        }
        if records.report is not None:
            self._documents[REPORT_NAME] = records.report.model_dump(mode="json")

    def render(self, lines: Iterable[Line]) -> Iterator[str]:
        """The lines of a section as Markdown.

        Raises:
            VerificationError: a claim whose record is not there, or text that would be a claim without a record. Both
                are faults of flagrelease, and stop the publication.
        """
        code = False
        for line in lines:
            if isinstance(line, str):
                code ^= line.startswith("```")
                if not (code or not line or line.startswith(("#", "```"))):
                    raise VerificationError(f"card: {line!r} says something without a status and a record")
                yield line
            elif isinstance(line, Advice):
                yield line.text
            elif isinstance(line, Columns):
                names = (*line.names, "status")
                yield f"| {' | '.join(names)} |"
                yield "|" + "---|" * len(names)
            else:
                self._require_record(line)
                yield _shown(line)

    def document(self, lines: Iterable[Line]) -> bytes:
        """`claims.json`: every claim of the card with its status and its record.

        Raises:
            VerificationError: as `render`.
        """
        found = []
        for line in lines:
            if isinstance(line, Claim | Row):
                self._require_record(line)
                seen = line.evidence
                record = None if seen is None else {"file": seen.file, "pointer": seen.pointer}
                found.append({"status": line.status, "text": _said(line), "record": record})
        document = {
            "schema_version": 1,
            "manifest_sha256": self._records.manifest_sha256,
            "statuses": MEANINGS,
            "claims": found,
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    def _require_record(self, line: Claim | Row) -> None:
        evidence, said = line.evidence, _said(line)
        if evidence is None:
            if line.status != "not run":
                raise VerificationError(f"card: {said!r} is said to be {line.status}, and no record is named")
        elif _found(self._documents.get(evidence.file), evidence.pointer) is None:
            raise VerificationError(f"card: {said!r} rests on {evidence.file}#{evidence.pointer}, which is not there")


def _shown(line: Claim | Row) -> str:
    if isinstance(line, Row):
        return f"| {' | '.join((*map(_cell, line.cells), line.status))} |"
    return f"{'- ' if line.bullet else ''}{line.text} *({line.status})*"


def _said(line: Claim | Row) -> str:
    return ": ".join(line.cells) if isinstance(line, Row) else line.text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


@cache
def _table(name: str) -> Any:
    return parse_yaml(resources.files("flagrelease.chips").joinpath(name).read_text(encoding="utf-8"))


def _found(document: Any, pointer: str) -> Any:
    """What a JSON pointer points at; None if that is nothing, or an empty list or text."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list | tuple) and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return None if document in ("", [], {}, ()) else document
