"""Records the texts of the native model for the gate of the logits stage, on the engine or over an endpoint."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from flagrelease.errors import UsageError
from flagrelease.validate.baseline import subject_of_source
from flagrelease.validate.logits.continuations.stored import Continuations, ContinuationsHead
from flagrelease.validate.logits.continuations.texts import EngineTexts, TextModel
from flagrelease.validate.logits.continuations.writing import Prompts, beginnings, prompts_sha256, write_continuations
from flagrelease.validate.stages.port import Port
from flagrelease.validate.stages.stage import Watch

if TYPE_CHECKING:
    from flagrelease.validate.stages.record import Recording


class UnscoredError(UsageError):
    """The endpoint gives no log-probabilities of prompts."""


def record_continuations(
    recording: Recording, port: Port | str, identity: str, journal: Path, watch: Watch
) -> Continuations:
    """Have the beginnings of the logits' documents continued, and score what was written. Resumes.

    Args:
        port: the running source, unless the recording has an endpoint.
        identity: the digest of the source's identity.
        journal: what is done already.

    Raises:
        UsageError: documents that cannot be used.
        UnscoredError: as it says.
        CheckpointError: the source gives no numbers.
        NetworkError: the endpoint cannot be asked, or tells no token ids.
    """
    from flagrelease.validate.logits.record import read_set

    rules = recording.rules.logits
    _, documents = read_set(recording.source, recording.documents, rules.replay)
    writing = rules.continuations.writing
    prompts = beginnings(documents, writing)
    longest = max(map(len, prompts.values())) + writing.tokens
    with ExitStack() as stack:
        if recording.endpoint is None:
            assert isinstance(port, Port)
            model: TextModel = EngineTexts(stack.enter_context(port.answering(longest, 1)))
            machine = port.stack
        else:
            model, machine = _over_endpoint(recording, prompts, journal)
        head = ContinuationsHead(
            subject=subject_of_source(identity),
            stack=machine,
            documents_sha256=prompts_sha256(prompts),
            rules=writing,
        )

        def progress(done: int, total: int) -> None:
            watch("texts of the source", done, total, "steps")

        return write_continuations(model, prompts, head, journal, progress)


def _over_endpoint(recording: Recording, prompts: Prompts, journal: Path) -> tuple[TextModel, str]:
    from flagrelease.validate.logits.continuations.served import EndpointTexts
    from flagrelease.validate.logits.served.kept import ServedFolder
    from flagrelease.validate.logits.served.server import ServedRelease

    assert recording.endpoint is not None
    server = ServedRelease(recording.source, recording.endpoint)
    example = server.prompt(0, next(iter(prompts.values())))
    way = server.way(ServedFolder(journal.parent), example, 1)
    if isinstance(way, str):
        raise UnscoredError(f"{way}: record the continuations with the bundled engine")
    return EndpointTexts(server, way), server.where
