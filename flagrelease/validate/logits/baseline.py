"""A baseline folder: what the source's runs said, so that a port elsewhere can be compared with them.

baseline.json        which model, documents, rules and machine; digests of all files. Written last.
documents.jsonl      the documents as they were given
native/, oracle/     kept distributions of the native run and of the BF16 oracle, a file for each document
native-layers/, oracle-layers/    states of their layers
oracle-native/       figures of the oracle against the native run
floor-oracle/, floor-layers/      of the oracle in other shapes against itself: the noise floor
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import VerificationError, first_problem
from flagrelease.model.families import read_config
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.rules import ReplayRules
from flagrelease.records.source_identity import SourceIdentity
from flagrelease.validate.logits.distribution import Figures, Kept
from flagrelease.validate.logits.documents import Document, Encoder, bundled_documents, digest, read_documents, tokenise
from flagrelease.validate.logits.files import document_file, read_arrays, read_run
from flagrelease.validate.logits.layers import Array
from flagrelease.validate.logits.replay import FiguresRun, KeptRun

RECORD = "baseline.json"
DOCUMENTS = "documents.jsonl"
Reference = Literal["native", "oracle"]
DocumentSet = Literal["bundled", "own"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Machine(_Record):
    """What computed: the device's type and name, who computes the operators, ranks, versions."""

    device: str
    device_name: str
    operators: str
    ranks: int
    torch: str
    python: str


class DocumentRecord(_Record):
    """A document; `tokens` counts them."""

    name: str
    kind: str
    tokens: int = Field(ge=2)


class BaselineRecord(_Record):
    """`baseline.json`.

    Attributes:
        model: the source that ran.
        set: the bundled documents or the user's own; `documents_sha256` is over the token ids of all of them.
        rules: of the replay.
        vocabulary, layers: of the model.
        files: SHA-256 by path of everything else in the folder; empty while it is being recorded.
    """

    schema_version: Literal[2] = 2
    tool: ToolRecord
    model: SourceIdentity
    machine: Machine
    set: DocumentSet
    documents_sha256: str
    documents: tuple[DocumentRecord, ...]
    rules: ReplayRules
    vocabulary: int
    layers: int
    files: dict[str, str] = {}

    def to_json(self) -> bytes:
        """The bytes of the document."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @property
    def top(self) -> int:
        """Tokens kept at each position."""
        return min(self.rules.top, self.vocabulary)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A complete baseline. Every file is checked against its digest when it is read."""

    folder: Path
    record: BaselineRecord
    sha256: str

    def kept(self, run: Reference, number: int) -> KeptRun:
        """The distributions of document `number`."""
        return read_run(self._checked(run, number), Kept)

    def figures(self, pair: str, number: int) -> FiguresRun:
        """`pair`: oracle-native or floor-oracle."""
        return read_run(self._checked(pair, number), Figures)

    def layers(self, run: Literal["native", "oracle", "floor"], number: int) -> dict[str, Array]:
        """States of a run, or the floor's errors."""
        return read_arrays(self._checked(f"{run}-layers", number))

    def check_files(self) -> None:
        """Read every file of the folder, which takes seconds, so that a damaged one is not found after hours.

        Raises:
            VerificationError: a file is missing, or its SHA-256 is another one.
        """
        for name in self.record.files:
            _check_digest(self.record, name, self.folder / name)

    def _checked(self, kind: str, number: int) -> Path:
        path = document_file(self.folder / kind, number)
        _check_digest(self.record, path.relative_to(self.folder).as_posix(), path)
        return path

    def documents(self, encoder: Encoder | None, bos: int, context: int) -> tuple[Document, ...]:
        """The documents through a release's tokenizer.

        Raises:
            VerificationError: they do not give the token ids that the source's tokenizer gave, or the bundled set of
                this version is another one.
        """
        path = self.folder / DOCUMENTS
        _check_digest(self.record, DOCUMENTS, path)
        given = read_documents(path)
        if self.record.set == "bundled" and given != bundled_documents():
            raise VerificationError(f"{path}: not the documents of this version of flagrelease: record a new baseline")
        documents = tokenise(given, encoder, self.record.rules, bos, context)
        if digest(documents) != self.record.documents_sha256:
            recorded = {document.name: document.tokens for document in self.record.documents}
            odd = [d.name for d in documents if recorded.get(d.name) != len(d.tokens)]
            which = f", {odd[0]!r} is the first of another length" if odd else ""
            raise VerificationError(
                f"{path}: through the release's tokenizer these are other token ids than the baseline's{which}: "
                "another tokenizer"
            )
        return documents


def _check_digest(record: BaselineRecord, name: str, path: Path) -> None:
    if name not in record.files:
        raise VerificationError(f"{path.parent / RECORD}: files: {name!r} is missing")
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise VerificationError(f"{path}: not found, though {RECORD} names it") from None
    if found != record.files[name]:
        raise VerificationError(f"{path}: SHA-256 is not the one in {RECORD}: damaged or exchanged")


def parse_record(path: Path) -> tuple[BaselineRecord, bytes]:
    """`baseline.json` and its bytes.

    Raises:
        VerificationError: there is none, or it does not follow the schema.
    """
    try:
        content = path.read_bytes()
        return BaselineRecord.model_validate_json(content), content
    except FileNotFoundError:
        raise VerificationError(f"{path}: not found: no baseline, or its recording did not finish") from None
    except ValidationError as error:
        old = error.errors()[0]["loc"] == ("schema_version",)
        remedy = "; it is of another version of flagrelease: record the baseline again" if old else ""
        raise VerificationError(f"{path}: {first_problem(error)}{remedy}") from error


def open_baseline(folder: Path, model: SourceIdentity, rules: ReplayRules) -> Baseline:
    """Open a baseline to compare a release of `model` with, under `rules`.

    Raises:
        VerificationError: no complete baseline, or one of another model or other rules; names what differs.
    """
    record, content = parse_record(folder / RECORD)
    if (difference := record.model.difference(model)) is not None:
        raise VerificationError(f"{folder / RECORD}: recorded from another model than this release's: {difference}")
    mine, wanted = record.rules.model_dump(), rules.model_dump()
    odd = next((key for key in mine if mine[key] != wanted[key]), None)
    if odd is not None:
        raise VerificationError(
            f"{folder / RECORD}: rules.{odd} is {mine[odd]!r}, this release has {wanted[odd]!r}: recorded under other "
            f"rules"
        )
    return Baseline(folder, record, hashlib.sha256(content).hexdigest())


def open_with_documents(
    folder: Path, release: Path, model: SourceIdentity, rules: ReplayRules
) -> tuple[Baseline, tuple[Document, ...]]:
    """Open a baseline, and its documents as `release` reads them: by its config and, if it has one, its tokenizer.

    Raises:
        VerificationError: as `open_baseline` and `Baseline.documents`.
    """
    opened = open_baseline(folder, model, rules)
    encoder = Tokenizer(release) if (release / "tokenizer.json").is_file() else None
    config, _ = read_config(release / "config.json")
    return opened, opened.documents(encoder, config.bos_token_id, config.max_position_embeddings)


def describe_machine(model: AnyModel) -> Machine:
    """What runs a loaded model."""
    return Machine(
        device=model.device.type,
        device_name=model.device.name,
        operators=model.ops.name,
        ranks=model.groups.mp,
        torch=torch.__version__,
        python=platform.python_version(),
    )
