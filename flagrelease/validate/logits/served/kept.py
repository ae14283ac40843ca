"""`ServedFolder`: what a server told of each document, kept as soon as it is there, so that a run can be resumed.

way.json                how prompts are scored
NNNN.safetensors        a document's scores; NNNN.json in its place: why there are none
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from flagrelease.durable.files import write_whole
from flagrelease.errors import VerificationError
from flagrelease.validate.logits.files import document_file, read_arrays, write_arrays
from flagrelease.validate.logits.served.bounds import Listed
from flagrelease.validate.logits.served.reading import PromptScores
from flagrelease.validate.logits.served.ways import Scored, Way

_ARRAYS = ("ids", "logq", "target", "ceiling")


class _Refusal(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    seconds: float


class ServedFolder:
    """In a stage's work folder, which the stage locks and binds."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self._folder = folder

    def way(self) -> Way | None:
        """How prompts were scored before; None if none was.

        Raises:
            VerificationError: the file is damaged.
        """
        path = self._folder / "way.json"
        try:
            return Way.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise VerificationError(f"{path}: is damaged; give another --out") from None

    def set_way(self, way: Way) -> None:
        """Keep it: all documents are asked for alike."""
        write_whole(self._folder / "way.json", way.model_dump_json().encode() + b"\n")

    def has(self, number: int) -> bool:
        """Whether document `number` was asked for."""
        return self._scores(number).is_file() or self._refusal(number).is_file()

    def keep(self, scored: Scored) -> None:
        """Write what became of a document."""
        number, scores = scored.prompt.number, scored.scores
        if isinstance(scores, str):
            refusal = _Refusal(reason=scores, seconds=scored.seconds)
            write_whole(self._refusal(number), refusal.model_dump_json().encode() + b"\n")
            return
        arrays = {name: getattr(scores.listed, name) for name in _ARRAYS}
        arrays |= {"first": np.array(scores.first), "seconds": np.array(scored.seconds)}
        write_arrays(self._scores(number), arrays)

    def read(self, number: int) -> tuple[PromptScores | str, float]:
        """The scores of a document or why it has none, and the seconds that its request took.

        Raises:
            VerificationError: the file is damaged.
        """
        path = self._refusal(number)
        if path.is_file():
            try:
                refusal = _Refusal.model_validate_json(path.read_bytes())
            except ValidationError:
                raise VerificationError(f"{path}: is damaged; give another --out") from None
            return refusal.reason, refusal.seconds
        arrays = read_arrays(self._scores(number))
        listed = Listed(*(arrays[name] for name in _ARRAYS))
        return PromptScores(int(arrays["first"]), listed), float(arrays["seconds"])

    def _scores(self, number: int) -> Path:
        return document_file(self._folder, number)

    def _refusal(self, number: int) -> Path:
        return self._folder / f"{number:04}.json"
