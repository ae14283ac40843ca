"""`read_recorded`: what a side recorded, read strictly from its file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from flagrelease.errors import UsageError, VerificationError, first_problem

M = TypeVar("M", bound=BaseModel)


def read_recorded(form: type[M], path: Path, named: str) -> M:
    """The record of this form in `path`; `named` is what users call it.

    Raises:
        UsageError: there is no such file.
        VerificationError: the file is not of this form.
    """
    try:
        return form.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: no recorded {named}") from None
    except ValidationError as error:
        raise VerificationError(f"{path}: {first_problem(error)}") from None
