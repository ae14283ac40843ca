"""`progress.yaml`: how far the releases of each chip have come."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flagrelease.plain_yaml import parse_yaml

State = Literal["planned", "converted", "run"]
WORDS: dict[State, str] = {
    "planned": "planned",
    "converted": "converted at full size here",
    "run": "run on the chip",
}


class Progress(BaseModel):
    """One entry; the head of the file says what its keys mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chip: str
    model: str | None = None
    release: str | None = None
    state: State
    what: str
    record: str

    def is_of(self, chip: str, model: str, release: str) -> bool:
        """Whether it speaks of this release."""
        return (self.chip, self.model or model, self.release or release) == (chip, model, release)


@cache
def progress() -> tuple[Progress, ...]:
    """All entries."""
    text = resources.files("flagrelease.chips.listing").joinpath("progress.yaml").read_text(encoding="utf-8")
    return tuple(Progress.model_validate(row) for row in parse_yaml(text))


def progress_of(chip: str, model: str, release: str) -> Progress | None:
    """The furthest entry of a release; None if there is none, so that it is planned and no more."""
    found = [one for one in progress() if one.is_of(chip, model, release)]
    return max(found, key=lambda one: tuple(WORDS).index(one.state), default=None)
