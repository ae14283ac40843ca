"""How much DeepSeek-V4.1 thinks before it answers: a number, and what the names mean to each provider.

The table is `efforts.yaml`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from flagrelease.errors import UsageError
from flagrelease.model.v4.efforts import Effort, Efforts, Mode
from flagrelease.plain_yaml import parse_yaml

LEAST, MOST = 1, 100
FAMILY = "deepseek_v41"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str
    providers: dict[str, dict[Mode, Annotated[int, Field(ge=LEAST, le=MOST)]]]


@cache
def _table() -> _Table:
    return _Table.model_validate(
        parse_yaml(resources.files("flagrelease.model.v41").joinpath("efforts.yaml").read_bytes())
    )


def effort_of(number: int) -> Effort:
    """The effort of this number, as the prompt says it.

    Raises:
        UsageError: it is not from 1 to 100.
    """
    if type(number) is not int or not LEAST <= number <= MOST:
        raise UsageError(f"effort {number!r}: DeepSeek-V4.1 takes a whole number from {LEAST} to {MOST}")
    return Effort(str(number), thinks=True, preamble=_table().text.format(number=number), family=FAMILY)


def efforts_of(provider: str = "deepseek") -> Efforts:
    """What the names mean to a provider.

    Raises:
        UsageError: the table has no such provider.
    """
    providers = _table().providers
    if provider not in providers:
        raise UsageError(f"efforts of {provider!r}: known are those of {', '.join(providers)}")
    known: dict[Mode, Effort] = {mode: effort_of(number) for mode, number in providers[provider].items()}
    return Efforts("V4.1", "its family", {"chat": Effort("none", thinks=False, family=FAMILY), **known}, effort_of)
