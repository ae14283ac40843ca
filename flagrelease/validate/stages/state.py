"""`State`: what the folder of a validation remembers, so that a killed validation is resumed and makes the same report.

state/lock, begun.json   held while a validation works here; what is validated: release, chip, rules, machine, versions
state/STAGE.json         a finished stage
work/                    what stages keep while they run: journals of answers, figures by document
report.json, report.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from flagrelease.durable.files import write_whole
from flagrelease.durable.folder import WorkFolder
from flagrelease.errors import ResourceError
from flagrelease.records.rules import StageName, ValidationRules
from flagrelease.validate.stages.stage import Outcome

CONTROL = "state"


def rules_sha256(rules: ValidationRules) -> str:
    """The SHA-256 of all rules, defaults written out."""
    return hashlib.sha256(json.dumps(rules.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class State:
    """The folder of one validation, begun or resumed, and locked until it is closed; use it as a context.

    Attributes:
        environment: machine and versions that all runs in this folder saw: a device may come in later.
    """

    def __init__(
        self, folder: Path, manifest_sha256: str, chip: str, rules: ValidationRules, environment: Mapping[str, str]
    ) -> None:
        """Begin the folder, or resume what an earlier run of the same validation began there.

        Raises:
            ResourceError: it was begun for another release, chip or set of rules, or on another machine; it holds
                something else; another process is validating there; or it cannot be written.
        """
        self.folder = folder
        binding = {"release": manifest_sha256, "chip": chip, "set of rules": rules_sha256(rules)}
        self._work = WorkFolder(folder, CONTROL, "validate", binding, environment)
        self.environment = self._work.facts

    def finished(self, name: StageName, inputs: dict[str, str]) -> Outcome | None:
        """The outcome of a finished stage; None if it is not finished, or can show more now: the source is given.

        Raises:
            ResourceError: it was finished with other inputs.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        outcome = _read(path)
        if differs := outcome.differences(inputs):
            raise ResourceError(
                f"{self.folder}: the stage {name} was finished with another {' and another '.join(differs)}; a "
                "validation cannot be repeated until it happens to pass: give another --out"
            )
        if outcome.rests_on_less(inputs):
            return None
        return outcome

    def finish(self, outcome: Outcome) -> Outcome:
        """Record a stage; returns what a resumed validation will read."""
        path = self._path(outcome.stage.name)
        write_whole(path, outcome.model_dump_json(indent=1).encode() + b"\n")
        return _read(path)

    def close(self) -> None:
        """Let another process have the folder."""
        self._work.close()

    def __enter__(self) -> State:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()

    def _path(self, name: StageName) -> Path:
        return self.folder / CONTROL / f"{name}.json"


def stage_work(folder: Path, name: StageName) -> Path:
    """The folder in which a stage keeps what it needs to resume; the stage makes it."""
    return folder / "work" / name


def _read(path: Path) -> Outcome:
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ResourceError(f"{path}: is damaged or of another version; give another --out") from error
