"""What all rules are: read strictly, so that a key that nobody knows is refused, and never changed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

ChatMode = Literal["chat", "thinking", "low", "high", "max"]
ExamKind = Literal["multiple-choice", "integer", "number", "expression", "code", "instructions"]


class Strict(BaseModel):
    """One section of rules."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # infinity: a limit that nothing breaks
