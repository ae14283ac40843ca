"""`PreflightCheck`: what was asked, what was expected, what came, and the line that mends it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter

from flagrelease.plain_yaml import parse_yaml
from flagrelease.records.rules.preflight import CheckId

CHECKS: tuple[CheckId, ...] = get_args(CheckId)
_LONGEST = 400  # characters of what came
Server = Literal["vllm", "sglang", "flagrelease"]
CheckVerdict = Literal["pass", "fail", "not-shown", "noted"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreflightCheck(_Strict):
    """One line of the list.

    Attributes:
        asked, expected, came: in words for the reader.
        verdict: `not-shown`: nothing that came tells. `noted`: differs, and stops nothing.
        fixes: the line to change, by kind of server, where something came that should not.
        accepted: why the rules let it fail or stay unshown.
    """

    id: CheckId
    asked: str
    expected: str
    came: str
    verdict: CheckVerdict
    fixes: dict[Server, str] = {}
    accepted: str | None = None


class PreflightFigures(_Strict):
    """`figures` of the stage: all checks, and what they cost."""

    server: str
    checks: tuple[PreflightCheck, ...]
    requests: int
    prompt_tokens: int
    tokens: int


def judged(id_: CheckId, asked: str, expected: str, came: str, verdict: CheckVerdict) -> PreflightCheck:
    """A check with its fixes, if something came that should not."""
    fixes = fixes_of(id_) if verdict in ("fail", "noted") else {}
    return PreflightCheck(id=id_, asked=asked, expected=expected, came=_in_a_line(came), verdict=verdict, fixes=fixes)


def _in_a_line(came: str) -> str:
    """As it is printed: it may have what a server wrote, and a terminal would do what other characters say."""
    line = "".join(each if each.isprintable() else "�" for each in came)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 2]}.."


def fixes_of(id_: CheckId) -> dict[Server, str]:
    """The line to change when this check fails, by kind of server."""
    return _fixes()[id_]


@cache
def _fixes() -> dict[CheckId, dict[Server, str]]:
    content = resources.files("flagrelease.validate.preflight").joinpath("fixes.yaml").read_bytes()
    return TypeAdapter(dict[CheckId, dict[Server, str]]).validate_python(parse_yaml(content))
