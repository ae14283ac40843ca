"""What a validation's folder remembers, so that a validation that was killed goes on and makes the same report.

state/validation.json    what is validated: manifest, chip, rules, machine and versions
state/STAGE.json         a finished stage
work/                    what stages keep while they run: journals of answers, figures by document
report.json, report.html
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flagrelease.durable.files import write_whole
from flagrelease.errors import ResourceError
from flagrelease.records.rules import StageName, ValidationRules
from flagrelease.validate.stages.stage import Outcome

Record = TypeVar("Record", bound=BaseModel)


class Binding(BaseModel):
    """What the folder is about. A folder is never used for another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    manifest_sha256: str
    chip: str
    rules_sha256: str
    environment: dict[str, str]


def rules_sha256(rules: ValidationRules) -> str:
    """Of all rules, defaults written out."""
    return hashlib.sha256(json.dumps(rules.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class State:
    """An opened folder."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, binding: Binding) -> State:
        """Begin the folder, or go on in it. Facts of the environment may be added to, as when a device comes in later.

        Raises:
            ResourceError: it was begun for something else, holds something else, or cannot be written.
        """
        path = folder / "state" / "validation.json"
        if path.is_file():
            begun = _read(path, Binding)
            _refuse_differences(folder, begun, binding)
            binding = binding.model_copy(update={"environment": begun.environment | binding.environment})
        elif folder.is_dir() and any(folder.iterdir()):
            raise ResourceError(f"{folder}: is not empty and was not begun by validate; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, binding)
        return cls(folder)

    def work(self, name: str) -> Path:
        """Where a stage keeps what it needs to go on; made by the stage."""
        return self.folder / "work" / name

    def finished(self, name: StageName, inputs: dict[str, str]) -> Outcome | None:
        """A finished stage; None if it is not, or if it can show more now: the source is given, and was not before.

        Raises:
            ResourceError: it was finished with other inputs.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        outcome = _read(path, Outcome)
        if differs := outcome.differences(inputs):
            raise ResourceError(
                f"{self.folder}: the stage {name} was finished with another {' and another '.join(differs)}; a "
                "validation cannot be repeated until it happens to pass: give another --out"
            )
        if outcome.rests_on_less(inputs):
            return None
        return outcome

    def finish(self, outcome: Outcome) -> Outcome:
        """Record a stage; returns what will be read when the validation goes on."""
        path = self._path(outcome.stage.name)
        _write(path, outcome)
        return _read(path, Outcome)

    def _path(self, name: StageName) -> Path:
        return self.folder / "state" / f"{name}.json"


def _refuse_differences(folder: Path, begun: Binding, now: Binding) -> None:
    words = {"manifest_sha256": "release", "chip": "chip", "rules_sha256": "set of rules"}
    for name, said in words.items():
        if getattr(begun, name) != getattr(now, name):
            raise ResourceError(f"{folder}: was begun for another {said}; give another --out")
    shared = begun.environment.keys() & now.environment.keys()
    for name in sorted(shared):
        if begun.environment[name] != now.environment[name]:
            raise ResourceError(
                f"{folder}: was begun with {name} {begun.environment[name]}, here it is {now.environment[name]}: "
                "answers of both would be mixed; give another --out"
            )


def _read(path: Path, kind: type[Record]) -> Record:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ResourceError(f"{path}: is damaged or of another version; give another --out") from error


def _write(path: Path, record: BaseModel) -> None:
    write_whole(path, record.model_dump_json(indent=1).encode() + b"\n")
