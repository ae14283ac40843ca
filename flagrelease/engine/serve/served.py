"""What a server serves."""

from __future__ import annotations

from dataclasses import dataclass, field

from flagrelease.engine.constraints.compiler import Compiler
from flagrelease.engine.serve.requests.refusals import ParameterError
from flagrelease.engine.serve.service import Service
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.efforts import Efforts, Mode


@dataclass(frozen=True, slots=True)
class Served:
    """A model under its public name. `mode` is that of chats that do not say one; `efforts` are the model's."""

    service: Service
    tokenizer: Tokenizer
    name: str
    mode: Mode
    efforts: Efforts
    constraints: Compiler = field(init=False)

    def __post_init__(self) -> None:
        """Its constraints are compiled for its tokenizer."""
        object.__setattr__(self, "constraints", Compiler(self.tokenizer))

    def check_model(self, name: str) -> None:
        """Refuse another model than this one.

        Raises:
            ParameterError: with HTTP's 404.
        """
        if name != self.name:
            raise ParameterError(
                f"model {name!r} is not here: this server has {self.name!r}", "model", "model_not_found", 404
            )
