"""`run_served`: the documents of a baseline through a server, and the verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flagrelease import __version__
from flagrelease.durable.folder import WorkFolder
from flagrelease.engine.numerics import Numerics, choose_numerics, own_numerics
from flagrelease.records.manifest import MANIFEST_NAME
from flagrelease.records.report import Stage
from flagrelease.records.rules import LogitsRules
from flagrelease.records.source_identity import identify
from flagrelease.validate.logits.baseline import Baseline, Reference, open_with_documents
from flagrelease.validate.logits.documents import Document
from flagrelease.validate.logits.served.evaluation import ServedDocument, evaluate, visible_share
from flagrelease.validate.logits.served.figures import Costs, Refused
from flagrelease.validate.logits.served.kept import ServedFolder
from flagrelease.validate.logits.served.server import ServedRelease
from flagrelease.validate.logits.served.verdict import ServedEvidence, decide_served
from flagrelease.validate.logits.served.ways import Way

_CONTROL = "state"
_REFERENCES: tuple[Reference, ...] = ("native", "oracle")
_SHORTEST = 3  # tokens of a document that is cut: the scores of two that follow one
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the server was asked: the documents as long as its context allows."""

    server: ServedRelease
    baseline: Baseline
    documents: tuple[Document, ...]
    cut: tuple[str, ...]
    kept: ServedFolder


def run_served(
    server: ServedRelease, baseline: Path, rules: LogitsRules, work: Path, progress: Progress | None = None
) -> Stage:
    """Compare what a server says of the documents of a baseline with what the source says. Resumes by document.

    Args:
        server: the release, and where it is served.
        baseline: folder of `record_baseline`.
        rules: limits; `rules.replay` must be the baseline's.
        work: folder for what the server told; new, or one that this call began.
        progress: is told (tokens done, tokens in all).

    Returns:
        The stage; "not-run", with what the server answered, where it gives no log-probabilities of prompts. `figures`
        are those of `logits.stage.run_logits`, with the replay "served" in `comparisons`, and `served`
        (`figures.Served`).

    Raises:
        VerificationError: a baseline of another model, tokenizer, document set or rules, or a damaged one.
        UsageError: documents that cannot be used with this model.
        ResourceError: `work` holds something else, or cannot be written.
        NetworkError: the server cannot be asked, or answers with an error; what it told is kept.
    """
    opened, documents = open_with_documents(baseline, server.folder, identify(server.folder), rules.replay)
    with WorkFolder(work, _CONTROL, "validate", _binding(server, opened)):
        asked = _asked(server, opened, documents, ServedFolder(work))
        example = min(asked.documents, key=lambda document: len(document.tokens))
        way = server.way(asked.kept, server.prompt(0, example.tokens), rules.served.alternatives)
        if isinstance(way, str):
            return Stage(name="logits", verdict="not-run", detail=f"Not run: {way}.")
        _ask(asked, way, progress)
        return decide_served(_evidence(asked, way), rules)


def _binding(server: ServedRelease, baseline: Baseline) -> dict[str, str]:
    """What the figures in a work folder depend on, by names that a user understands."""
    return {
        "version of flagrelease": __version__,
        "release": hashlib.sha256((server.folder / MANIFEST_NAME).read_bytes()).hexdigest(),
        "baseline": baseline.sha256,
        "server": server.where,
    }


def _asked(server: ServedRelease, baseline: Baseline, documents: Sequence[Document], kept: ServedFolder) -> _Asked:
    """Cut what the server's context does not hold; one token more is always asked for."""
    context = server.context()
    longest = None if context is None else max(context - 1, _SHORTEST)
    held = tuple(Document(each.name, each.kind, each.tokens[:longest]) for each in documents)
    cut = tuple(each.name for each, whole in zip(held, documents, strict=True) if each.tokens != whole.tokens)
    return _Asked(server, baseline, held, cut, kept)


def _ask(asked: _Asked, way: Way, progress: Progress | None) -> None:
    lengths = [len(document.tokens) for document in asked.documents]
    missing = [number for number in range(len(lengths)) if not asked.kept.has(number)]
    done = sum(lengths) - sum(lengths[number] for number in missing)
    prompts = [asked.server.prompt(number, asked.documents[number].tokens) for number in missing]
    for scored in asked.server.score(way, prompts):
        asked.kept.keep(scored)
        done += len(scored.prompt.tokens)
        if progress is not None:
            progress(done, sum(lengths))


def _evidence(asked: _Asked, way: Way) -> ServedEvidence:
    runs: dict[Reference, list[ServedDocument]] = {run: [] for run in _REFERENCES}
    numbers, refused, seconds = [], [], 0.0
    for number, document in enumerate(asked.documents):
        scores, took = asked.kept.read(number)
        seconds += took
        if isinstance(scores, str):
            refused.append(Refused(name=document.name, reason=scores))
            continue
        numbers.append(number)
        for run in _REFERENCES:
            kept = asked.baseline.kept(run, number)["prefill"]
            runs[run].append(evaluate(kept, scores, asked.baseline.record.vocabulary))
    tokens = sum(len(document.tokens) for document in asked.documents)
    return ServedEvidence(
        baseline=asked.baseline,
        where=asked.server.where,
        way=way,
        numbers=tuple(numbers),
        runs=runs,
        shares={run: visible_share(asked.baseline, run, asked.documents, way.alternatives) for run in _REFERENCES},
        refused=tuple(refused),
        cut=asked.cut,
        costs=Costs(requests=len(asked.documents), tokens=tokens, seconds=seconds),
        numerics=_numerics(asked.server),
    )


def _numerics(server: ServedRelease) -> Numerics:
    """What a server computes with a release of this format, as far as the format says it."""
    import torch

    name = own_numerics(server.folder, server.config)
    return choose_numerics(name, torch.bfloat16, server.config)
