"""What the native model gives, which the validations of all chips are compared with: recorded once, if at all.

A part of it is recorded again when what it was recorded for has changed: the checkpoint, the rules of how the model is
asked, the questions, the texts. The former part goes into the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flagrelease.console import Display
from flagrelease.durable.files import refused
from flagrelease.records.changes import changes, in_a_sentence
from flagrelease.records.rules import ValidationRules
from flagrelease.run.history import put_away_part
from flagrelease.run.on_ranks import run_on_ranks, shared_options
from flagrelease.run.records import RecordedFor, read_record, write_record
from flagrelease.run.request import RunRequest
from flagrelease.run.steps import ChipRun
from flagrelease.validate.baseline import BaselineFolder, file_sha256
from flagrelease.validate.exams.side import Asked
from flagrelease.validate.stages.record import Recording, record
from flagrelease.validate.stages.stage import FILE_STAGES

_RECORD = "baseline"
_JUDGED_ONLY = {"lengths", "margin", "alpha", "most_truncated"}  # of long contexts; the lengths have a part each


def needs_model(rules: ValidationRules) -> bool:
    """Whether a pass needs a stage that runs the model."""
    return not set(rules.stages) <= set(FILE_STAGES)


def baseline_folder(request: RunRequest) -> Path:
    """Made elsewhere, or here."""
    return request.baseline or request.out / "baseline"


def outdated_parts(request: RunRequest, identity: str) -> dict[str, str]:
    """Parts of `OUT/baseline` that were recorded for something else than is asked now, each with why."""
    if request.baseline is not None:
        return {}
    before = read_record(RecordedFor, request.out, _RECORD)
    found = {}
    for name, now in _asked_for(request, identity).items():
        was = None if before is None else before.parts.get(name)
        if was is not None and (differs := changes(was, now)):
            found[name] = in_a_sentence(differs)
    return found


def record_baseline(request: RunRequest, runs: Sequence[ChipRun], source: Path, identity: str) -> None:
    """Record what the native model gives, unless that was made elsewhere, on as many ranks as the first chip's release.

    Raises:
        FlagReleaseError: as recording does.
    """
    if request.baseline is not None or not needs_model(request.recipe.validation):
        return
    asked = _asked_for(request, identity)
    for name in outdated_parts(request, identity):
        _put_away(request, name)
    write_record(RecordedFor(parts=asked), request.out, _RECORD)
    folder, ranks = baseline_folder(request), runs[0].release.ranks
    if asked.keys() <= set(BaselineFolder(folder).parts()):
        return  # another machine may read it now: nothing is locked
    if ranks > 1:
        words = ["baseline", "record", str(source), "--out", str(folder), *shared_options(request)]
        words += [] if request.documents is None else ["--documents", str(request.documents)]
        run_on_ranks(ranks, words)
        return
    recording = Recording(
        source=source,
        out=folder,
        rules=request.recipe.validation,
        data=request.data,
        documents=request.documents,
        device=request.device,
        operators=request.operators,
    )
    with Display() as display:
        record(recording, display)


def _asked_for(request: RunRequest, identity: str) -> dict[str, dict[str, Any]]:
    """What each part rests on: the model, the rules of how it is asked, and what it is asked."""
    rules = request.recipe.validation
    texts = "bundled" if request.documents is None else file_sha256(request.documents)
    written = rules.logits.continuations.writing
    parts: dict[str, dict[str, Any]] = {
        "logits": {"replay": rules.logits.replay.model_dump(mode="json"), "documents": texts},
        "continuations": {"writing": written.model_dump(mode="json"), "documents": texts},
        "behaviour": {"behaviour": rules.behaviour.model_dump(mode="json")},
    }
    for name, benchmark in rules.benchmarks.items():
        data = [file_sha256(path) for path in request.data.get(name, ())]
        asked = Asked.of_rules(benchmark) | {"answers": benchmark.most_repeats}
        parts[f"benchmarks/{name}"] = {name: asked, "data": data or "hub"}
    if (contexts := rules.long_context) is not None:
        asked = contexts.model_dump(mode="json", exclude=_JUDGED_ONLY)
        parts |= {f"long-context/{length}": {"long_context": asked} for length in contexts.lengths}
    return {name: {"source": identity} | part for name, part in parts.items()}


def _put_away(request: RunRequest, part: str) -> None:
    """Into the history with what is whole; what was begun is removed."""
    folder = BaselineFolder(baseline_folder(request))
    kind, _, name = part.partition("/")
    places = {"logits": folder.logits, "continuations": folder.continuations, "behaviour": folder.behaviour}
    in_lengths = kind == "long-context"
    whole = places.get(part) or (folder.context_answers(int(name)) if in_lengths else folder.answers(name))
    if whole.exists():
        put_away_part(request.out, whole)
    journal = folder.work(f"{kind}-{name}" if in_lengths else name or kind)
    with refused(journal):
        journal.unlink(missing_ok=True)
