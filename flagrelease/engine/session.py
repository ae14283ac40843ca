"""A loaded release and the ranks that run it, for the length of a command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from flagrelease.console import Display
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.batch.worth import Worth
from flagrelease.engine.decode.stepper import describe_steps
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.loaded import AnyModel
from flagrelease.engine.loader import load
from flagrelease.engine.numerics import NumericsName
from flagrelease.engine.parallel import leave_job
from flagrelease.engine.preflight import DEFAULT_CONTEXT
from flagrelease.engine.speculation import NO_SPECULATION, Speculation
from flagrelease.engine.text import Tokenizer
from flagrelease.model.v4.efforts import Efforts
from flagrelease.ranks.job import is_leader


@dataclass(frozen=True, slots=True)
class Session:
    """Use as a context: at its end the processes of the job part."""

    release: Path
    model: AnyModel
    speculation: Speculation = NO_SPECULATION

    @classmethod
    def open(
        cls, release: Path, numerics: NumericsName | None, dtype: str, device: str, operators: str, *,
        speculation: Speculation = NO_SPECULATION,
    ) -> Session:  # fmt: skip
        """Load, and say on stderr what was loaded.

        Args:
            release: its folder.
            numerics: None: the release's own.
            dtype: name of torch's.
            device: see `load`.
            operators: see `load`.
            speculation: whether the draft stages are loaded too, and how many tokens they may guess.
        """
        with Display(quiet=not is_leader(), lasting=False) as display:
            model = load(
                release, numerics, dtype, device, operators=operators, mtp=speculation.most > 0,
                progress=lambda done, total: display("loading", done, total, "weights"),
            )  # fmt: skip
        if model.groups.is_leader:
            said = f"{model.numerics.name} numerics in {dtype}, {model.ops.name} operators, {model.device.torch_device}"
            print(f"{release}: {said}, {model.groups.mp} rank(s), {describe_steps(model)}", file=sys.stderr)
            for remark in (*model.remarks, speculation.said):
                print(f"{release}: {remark}", file=sys.stderr)
        return cls(release, model, speculation)

    def __enter__(self) -> Session:
        """Nothing is left to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the job. After an error torchrun ends the other ranks, which may be waiting for this one."""
        if error is None:
            leave_job()

    @property
    def default_context(self) -> int:
        """Tokens a sequence may have where nobody says: no more than the model can see."""
        return min(DEFAULT_CONTEXT, self.model.config.max_position_embeddings)

    def runner(self, rows: int, context: int | None) -> Runner:
        """The model with its caches, on every rank. `context` None: the default.

        Raises:
            UsageError: a context that the model does not have.
        """
        if context is None:
            context = self.default_context
        most = self.speculation.most
        return Runner(self.model, rows, context, speculate=most > 0, most=most or None)

    def scheduler(self, runner: Runner, tokenizer: Tokenizer, budget: int | None = None) -> Scheduler:
        """Many sequences on `runner`; on the leader. `budget`: tokens of prompts that a step reads; None: a chunk."""
        return Scheduler(runner, tokenizer, budget, Worth() if self.speculation.adaptive else None)

    def tokenizer(self) -> Tokenizer:
        """The release's."""
        return Tokenizer(self.release)

    def efforts(self) -> Efforts:
        """What the release makes of the efforts that chats name."""
        return read_efforts(self.release)
