"""`run_logits`: the port on the documents of a baseline, and the verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from flagrelease import __version__
from flagrelease.durable.folder import WorkFolder
from flagrelease.engine.loaded import AnyModel
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.records.report import Stage
from flagrelease.records.rules import LogitsRules
from flagrelease.records.source_identity import identify
from flagrelease.validate.logits.baseline import Baseline, Reference, describe_machine, open_with_documents
from flagrelease.validate.logits.distribution import Figures
from flagrelease.validate.logits.documents import Document
from flagrelease.validate.logits.files import document_file, read_arrays, read_run, write_arrays, write_run
from flagrelease.validate.logits.layers import LayerObserver, sampled_positions
from flagrelease.validate.logits.localise import Errors, layer_errors
from flagrelease.validate.logits.replay import FiguresRun, KeptRun, Replayer, Shape, tokens_of
from flagrelease.validate.logits.verdict import VerdictEvidence, decide

_CONTROL = "state"
_REFERENCES: tuple[Reference, ...] = ("native", "oracle")
_LAYERS = "layers"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Port:
    """The port's run: its model, its work folder, the source's runs, and whether layers are looked at."""

    model: AnyModel
    work: Path
    baseline: Baseline
    layers: bool


def run_logits(
    model: AnyModel,
    release: Path,
    baseline: Path,
    rules: LogitsRules,
    work: Path,
    *,
    layers: bool = False,
    progress: Progress | None = None,
) -> Stage:
    """Compare a release with its baseline. After a kill the same call resumes and gives the same stage.

    Under torchrun every rank calls this and gets the stage; the first rank writes.

    Args:
        model: the release, loaded with the numerics of its chip. One that rounds activations as the native run does
            (native, fp8) is judged against that run; one that rounds them in its own way (int8, fp8-channel, mxfp8)
            against the BF16 oracle, more loosely; one that rounds none against the oracle and, more loosely, the
            native run.
        release: its folder.
        baseline: folder of `record_baseline`.
        rules: limits; `rules.replay` must be the baseline's.
        work: folder for what each document gave; new, or one that this call began.
        layers: look at every layer, too, and say where the first step is; what was run without is run again.
        progress: is told (tokens done, tokens in all).

    Returns:
        The stage. `figures`: `documents`, `baseline`, `comparisons` (a list: see `comparison.Comparison.figures`),
        `ratio` (a measure for each replay, empty for a port that rounds), `broken` (names of measures that failed), and
        with `layers` `layers` (see `layer_verdict.LayerVerdict.figures`). A measure has name, label, value, low, high,
        at_least, at_most and verdict.

    Raises:
        VerificationError: a baseline of another model, tokenizer, document set or rules, or a damaged one.
        UsageError: documents that cannot be used with this model.
        ResourceError: `work` holds something else, or cannot be written.
    """
    opened, documents = open_with_documents(baseline, release, identify(release), rules.replay)
    port = _Port(model, work, opened, layers)
    with WorkFolder(work, _CONTROL, "validate", _binding(port, release)) if model.groups.is_leader else nullcontext():
        _run_documents(port, documents, progress)
        if not model.groups.is_leader:
            return Stage.model_validate_json(model.groups.hear())
        stage = decide(_evidence(port), rules)
        model.groups.tell(stage.model_dump_json().encode())
        return stage


def _run_documents(port: _Port, documents: Sequence[Document], progress: Progress | None) -> None:
    model, rules = port.model, port.baseline.record.rules
    total = sum(tokens_of(document.tokens, rules) for document in documents)
    longest = max(len(document.tokens) for document in documents)
    replayer = Replayer(model, rules, Shape(rules.chunk), longest)
    done = 0
    for number, document in enumerate(documents):
        if not model.groups.from_leader(_is_done(port, number)):
            _run_document(port, replayer, number, document)
        done += tokens_of(document.tokens, rules)
        if progress is not None:
            progress(done, total)


def _binding(port: _Port, release: Path) -> dict[str, str]:
    """What the figures in a work folder depend on, by names that a user understands."""
    return {
        "version of flagrelease": __version__,
        "release": hashlib.sha256((release / MANIFEST_NAME).read_bytes()).hexdigest(),
        "baseline": port.baseline.sha256,
        "numerics": f"{port.model.numerics.name} {port.model.numerics.dtype}",
        "machine": describe_machine(port.model).model_dump_json(),
    }


def _is_done(port: _Port, number: int) -> bool:
    folders = [*_REFERENCES, *([_LAYERS] if port.layers else [])]
    return all(document_file(port.work / folder, number).is_file() for folder in folders)


def _run_document(port: _Port, replayer: Replayer, number: int, document: Document) -> None:
    rules, leads = port.baseline.record.rules, port.model.groups.is_leader
    against: dict[str, KeptRun] = {run: port.baseline.kept(run, number) for run in _REFERENCES} if leads else {}
    observer = LayerObserver(port.model, sampled_positions(len(document.tokens), rules)) if port.layers else None
    outcome = replayer.run(document.tokens, against, keeping=False, observer=observer)
    if not leads:
        return
    for run in _REFERENCES:
        write_run(document_file(port.work / run, number), outcome.figures[run])
    if observer is not None:
        reference = port.baseline.layers(port.model.numerics.reference, number)
        errors = layer_errors(reference, observer.states(), port.baseline.record.layers)
        write_arrays(document_file(port.work / _LAYERS, number), errors)


def _evidence(port: _Port) -> VerdictEvidence:
    numbers = range(len(port.baseline.record.documents))
    runs: dict[Reference, list[FiguresRun]] = {
        run: [read_run(document_file(port.work / run, number), Figures) for number in numbers] for run in _REFERENCES
    }
    errors: list[Errors] | None = None
    if port.layers:
        errors = [read_arrays(document_file(port.work / _LAYERS, number)) for number in numbers]
    return VerdictEvidence(port.baseline, runs, errors, port.model.numerics)
