"""How much a model thinks before it answers, by its revision: the names that requests use, and what the prompt says.

The table is `efforts.yaml`. The preview of April and the models since July read the same names differently, so the
revision has to be known before a prompt is written. `recognise` finds it out from what a checkpoint carries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from flagrelease.errors import UsageError
from flagrelease.model.v4.config import ModelConfig
from flagrelease.plain_yaml import parse_yaml

Mode = Literal["chat", "thinking", "minimal", "low", "medium", "high", "xhigh", "max"]
"""What can be asked for: no thinking; thinking, as much as the revision does by default; thinking with an effort."""

MODES: tuple[Mode, ...] = get_args(Mode)
ENCODER = "encoding/encoding_dsv4.py"
_LONGEST_ENCODER = 1 << 20  # bytes that are read of it


@dataclass(frozen=True, slots=True)
class Effort:
    """`name`: as the revision's own encoder calls it, "none" without thinking. `preamble`: begins the prompt.

    `family` is the model_type of the models that it is for, whose encoding writes the prompt.
    """

    name: str
    thinks: bool
    preamble: str = ""
    family: str = "deepseek_v4"


@dataclass(frozen=True, slots=True)
class Efforts:
    """The efforts of one revision.

    Attributes:
        revision: its name.
        known_by: how it was recognised, in words.
        by_mode: what the names mean.
        numbered: the effort of a number, for a model that takes numbers.
    """

    revision: str
    known_by: str
    by_mode: Mapping[Mode, Effort]
    numbered: Callable[[int], Effort] | None = None

    @property
    def said(self) -> str:
        """For the user: which revision it is, and what told it."""
        return f"efforts of the {self.revision} revision, told by {self.known_by}"

    def of(self, mode: Mode | int) -> Effort:
        """The effort that `mode` asks for, by its name or as a number.

        Raises:
            UsageError: there is no such mode, or this model takes no numbers.
        """
        if isinstance(mode, int):
            if self.numbered is None:
                raise UsageError(f"reasoning_effort {mode}: this model has names for its efforts, no numbers")
            return self.numbered(mode)
        if mode not in self.by_mode:
            raise UsageError(f"chat mode {mode!r}: known are {', '.join(self.by_mode)}")
        return self.by_mode[mode]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Revision(_Strict):
    name: str
    encoder: str
    published: list[str]
    dspark: bool | None
    texts: dict[str, str | None]
    modes: dict[str, str]


class _Table(_Strict):
    texts: dict[str, str]
    revisions: list[_Revision]

    def efforts(self, revision: _Revision, known_by: str) -> Efforts:
        found: dict[Mode, Effort] = {"chat": Effort("none", thinks=False)}
        for mode in MODES[1:]:
            name = revision.modes[mode]
            text = revision.texts[name]
            found[mode] = Effort(name, thinks=True, preamble="" if text is None else self.texts[text])
        return Efforts(revision.name, known_by, found)


@cache
def _table() -> _Table:
    return _Table.model_validate(
        parse_yaml(resources.files("flagrelease.model.v4").joinpath("efforts.yaml").read_bytes())
    )


def efforts_of(revision: str) -> Efforts:
    """The efforts of the revision with this name in the table.

    Raises:
        UsageError: the table has no such revision.
    """
    table = _table()
    for each in table.revisions:
        if each.name == revision:
            return table.efforts(each, "named")
    raise UsageError(f"revision {revision!r}: known are {', '.join(each.name for each in table.revisions)}")


def recognise(folder: Path, config: ModelConfig, names: Sequence[str]) -> Efforts:
    """The efforts of a checkpoint or release.

    The encoder that the checkpoint carries tells its revision; without it the names that it goes by do, then what its
    draft stages are. What none of them tells counts as the newest revision, and `known_by` says so.

    Args:
        folder: the checkpoint or release; its encoder is read as text, never run.
        config: its config.
        names: of the repository that it comes from ("deepseek-ai/DeepSeek-V4-Flash") and of its model, as far as they
            were recorded.
    """
    table = _table()
    defined = _defined_by(folder / ENCODER)
    for each in table.revisions:
        if each.encoder in defined:
            return table.efforts(each, ENCODER)
    for name in names:
        for each in table.revisions:
            if name.rpartition("/")[2].lower() in (known.lower() for known in each.published):
                return table.efforts(each, f"its name, {name}")
    for each in table.revisions:
        if each.dspark is None and not config.is_dspark and config.num_nextn_predict_layers:
            return table.efforts(each, "its MTP stage, which later ones do not have")
    newest = table.revisions[-1]
    if config.is_dspark:
        return table.efforts(newest, "its DSpark stages")
    return table.efforts(newest, "nothing in it, so the newest is assumed")


def _defined_by(encoder: Path) -> set[str]:
    """The names that a Python file assigns at its top level, as far as lines show it."""
    if not encoder.is_file():
        return set()
    with encoder.open("rb") as file:
        text = file.read(_LONGEST_ENCODER).decode("utf-8", errors="replace")
    return set(re.findall(r"^([A-Z_]+)[ \t]*(?::[^=\n]*)?=", text, re.MULTILINE))
