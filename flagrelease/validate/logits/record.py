"""`record_baseline`: run the source on a set of documents, and keep what ports are compared with."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flagrelease import __version__
from flagrelease.durable.files import write_whole
from flagrelease.durable.folder import LOCK_NAME, WorkFolder, remove_control
from flagrelease.durable.lock import FileLock
from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.loader import load
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import CheckpointError, ResourceError
from flagrelease.model.families import read_config
from flagrelease.ranks.job import is_leader
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.rules import LogitsRules, ReplayRules
from flagrelease.records.source_identity import SourceIdentity, identify
from flagrelease.validate.logits.baseline import (
    DOCUMENTS,
    RECORD,
    Baseline,
    BaselineRecord,
    DocumentRecord,
    DocumentSet,
    describe_machine,
    parse_record,
)
from flagrelease.validate.logits.distribution import Kept
from flagrelease.validate.logits.documents import Document, Given, bundled_documents, digest, read_documents, tokenise
from flagrelease.validate.logits.files import document_file, read_arrays, read_run, write_arrays, write_run
from flagrelease.validate.logits.layers import LayerObserver, States, sampled_positions
from flagrelease.validate.logits.localise import layer_errors
from flagrelease.validate.logits.replay import Replayer, ReplayResult, Shape, tokens_of

_CONTROL = "state"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Run:
    """One of the three: its name, what it is compared with, and whether its distributions are kept."""

    name: str
    against: str | None
    keeping: bool

    @property
    def folders(self) -> list[str]:
        """What it writes for each document."""
        pair = [] if self.against is None else [f"{self.name}-{self.against}"]
        return [*([self.name] if self.keeping else []), *pair, f"{self.name}-layers"]

    def shape(self, rules: ReplayRules) -> Shape:
        """Of its steps."""
        return Shape(rules.floor_chunk, rules.floor_rows) if self is _FLOOR else Shape(rules.chunk)


_NATIVE, _ORACLE, _FLOOR = _Run("native", None, True), _Run("oracle", "native", True), _Run("floor", "oracle", False)


def record_baseline(
    source: Path,
    out: Path,
    rules: LogitsRules,
    *,
    documents: Path | None = None,
    device: str = "auto",
    operators: str = "auto",
    progress: Progress | None = None,
) -> Baseline:
    """Record the native run, the BF16 oracle and its noise floor. After a kill the same call resumes.

    Under torchrun every rank calls this, and all see `out`; the first rank writes.

    Args:
        source: the checkpoint, or a native release of it.
        out: folder of the baseline; new, or one that this call began.
        rules: what the release will be judged by; `rules.replay` decides what is run.
        documents: a user's own set (`documents.read_documents`); None for the bundled one.
        device: auto, cpu, or one that the chip table knows.
        operators: who computes.
        progress: is told (tokens done, tokens in all).

    Raises:
        UsageError: documents that cannot be used with this model, a device or operators that do not exist.
        CheckpointError: the source is not a sound checkpoint, or what it computes is not numbers.
        ResourceError: `out` holds something else, is in use or cannot be written, or the device is not there.
    """
    given, read = read_set(source, documents, rules.replay)
    wanted = _Wanted(identify(source), "bundled" if documents is None else "own", read, rules.replay)
    if (out / RECORD).is_file():  # no model has to be loaded to see that nothing is missing
        return _finished_before(out, wanted)
    model = load(source, "native", torch.bfloat16, device, operators=operators)
    leads = model.groups.is_leader
    record = wanted.record(model)
    with WorkFolder(out, _CONTROL, "baseline record", _binding(record)) if leads else nullcontext() as work:
        if work is not None:
            write_whole(out / DOCUMENTS, "".join(f"{document.to_json()}\n" for document in given).encode())
        count = _Count(3 * sum(tokens_of(d.tokens, rules.replay) for d in read), progress)
        _record_run(model, _NATIVE, out, read, rules.replay, count)
        del model
        gc.collect()  # the native weights go before the decoded ones come
        model = load(source, "bf16", torch.bfloat16, device, operators=operators)
        _record_run(model, _ORACLE, out, read, rules.replay, count)
        _record_run(model, _FLOOR, out, read, rules.replay, count)
        if work is not None:
            _finish(out, record)
            work.remove_control(())
        model.groups.from_leader(None)  # nobody looks before the leader has written
    return _complete(out)


def read_set(
    source: Path, documents: Path | None, rules: ReplayRules
) -> tuple[tuple[Given, ...], tuple[Document, ...]]:
    """The documents of a recording, as they were given and as the source reads them. No model is loaded.

    Raises:
        UsageError: they cannot be read, or cannot be used with this model.
    """
    given = bundled_documents() if documents is None else read_documents(documents)
    config, _ = read_config(source / "config.json")
    encoder = Tokenizer(source) if (source / "tokenizer.json").is_file() else None
    return given, tokenise(given, encoder, rules, config.bos_token_id, config.max_position_embeddings)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be recorded, on whatever machine."""

    model: SourceIdentity
    set: DocumentSet
    documents: tuple[Document, ...]
    rules: ReplayRules

    def record(self, model: AnyModel) -> BaselineRecord:
        """The record of recording it with `model`, without digests of files."""
        return BaselineRecord(
            tool=ToolRecord(version=__version__),
            model=self.model,
            machine=describe_machine(model),
            set=self.set,
            documents_sha256=digest(self.documents),
            documents=tuple(DocumentRecord(name=d.name, kind=d.kind, tokens=len(d.tokens)) for d in self.documents),
            rules=self.rules,
            vocabulary=model.config.vocab_size,
            layers=model.config.num_hidden_layers,
        )

    def difference(self, found: BaselineRecord) -> str | None:
        """What a finished recording has otherwise, in words; None if it is this one."""
        if (difference := found.model.difference(self.model)) is not None:
            return f"of another model ({difference})"
        if found.rules != self.rules:
            return "under other rules"
        return None if found.documents_sha256 == digest(self.documents) else "of other documents"


def _binding(record: BaselineRecord) -> dict[str, str]:
    """What the files of a recording depend on, by names that a user understands."""
    return {
        "version of flagrelease": record.tool.version,
        "model": record.model.digest,
        "machine": record.machine.model_dump_json(),
        "set of documents": record.documents_sha256,
        "set of rules": record.rules.model_dump_json(),
    }


def _finished_before(out: Path, wanted: _Wanted) -> Baseline:
    """A complete recording, if it is what is wanted. It may come from another machine, which it names.

    Raises:
        ResourceError: it is another one.
    """
    found, _ = parse_record(out / RECORD)
    if (difference := wanted.difference(found)) is not None:
        raise ResourceError(f"{out}: holds another baseline, {difference}; give another --out or remove the folder")
    control = out / _CONTROL
    if is_leader() and control.is_dir():  # the recording was killed in its last moment
        remove_control(control, FileLock(control / LOCK_NAME, out), ())
    return _complete(out)


@dataclass(slots=True)
class _Count:
    total: int
    tell: Progress | None
    done: int = 0

    def add(self, tokens: int) -> None:
        self.done += tokens
        if self.tell is not None:
            self.tell(self.done, self.total)


def _record_run(
    model: AnyModel, run: _Run, out: Path, documents: tuple[Document, ...], rules: ReplayRules, count: _Count
) -> None:
    replayer = Replayer(model, rules, run.shape(rules), max(len(document.tokens) for document in documents))
    for number, document in enumerate(documents):
        whole = all(document_file(out / folder, number).is_file() for folder in run.folders)
        if not model.groups.from_leader(whole):
            observer = LayerObserver(model, sampled_positions(len(document.tokens), rules))
            _record_document(replayer, observer, run, out, number, document)
        count.add(tokens_of(document.tokens, rules))


def _record_document(
    replayer: Replayer, observer: LayerObserver, run: _Run, out: Path, number: int, document: Document
) -> None:
    leads = observer.model.groups.is_leader
    against = {}
    if run.against is not None and leads:
        against[run.against] = read_run(document_file(out / run.against, number), Kept)
    outcome = replayer.run(document.tokens, against, keeping=run.keeping, observer=observer)
    if not leads:
        return
    _check_numbers(outcome, f"document {document.name!r}: the source's {run.name} run")
    states: States = observer.states()
    if run.against is not None:
        write_run(document_file(out / f"{run.name}-{run.against}", number), outcome.figures[run.against])
    if outcome.kept is not None:
        write_run(document_file(out / run.name, number), outcome.kept)
    else:  # a floor is its errors
        reference = read_arrays(document_file(out / f"{run.against}-layers", number))
        states = layer_errors(reference, states, observer.model.config.num_hidden_layers)
    write_arrays(document_file(out / f"{run.name}-layers", number), states)


def _check_numbers(outcome: ReplayResult, what: str) -> None:
    """A reference must be made of numbers."""
    logp = [kept.logp for kept in (outcome.kept or {}).values()]
    finite = [figures.finite for run in outcome.figures.values() for figures in run.values()]
    if not all(np.isfinite(array).all() for array in logp) or not all(array.all() for array in finite):
        raise CheckpointError(f"{what} gives logits that are NaN or infinite: nothing can be compared with it")


def _finish(out: Path, record: BaselineRecord) -> None:
    folders = [out / folder for run in (_NATIVE, _ORACLE, _FLOOR) for folder in run.folders]
    numbers = range(len(record.documents))
    paths = [out / DOCUMENTS, *(document_file(folder, number) for folder in sorted(folders) for number in numbers)]
    files = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    write_whole(out / RECORD, record.model_copy(update={"files": files}).to_json())


def _complete(out: Path) -> Baseline:
    found, content = parse_record(out / RECORD)
    return Baseline(out, found, hashlib.sha256(content).hexdigest())
