"""A loaded release and the ranks that run it, for the length of a command."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

from flagrelease.console import say
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.engine.decode.stepper import describe_steps
from flagrelease.engine.efforts import read_efforts
from flagrelease.engine.loader import load
from flagrelease.engine.numerics import NumericsName
from flagrelease.engine.parallel import leave_job
from flagrelease.engine.preflight import DEFAULT_CONTEXT
from flagrelease.engine.text import Tokenizer
from flagrelease.engine.v4.model import Model
from flagrelease.errors import ResourceError
from flagrelease.extras import remedy
from flagrelease.model.v4.efforts import Efforts, Mode


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served.

    Attributes:
        name: the model's, for clients.
        mode: of chats that do not say one.
        host: address to listen on.
        port: port to listen on.
        context: tokens a sequence may have; None: `Session.default_context`.
        rows: sequences at once.
        queue: sequences that may wait for a row.
        budget: tokens of prompts read in a step, between two tokens of running answers.
        grace: seconds that running answers get at the end.
        key: what clients must send; None: nothing, and the server answers to no other name than localhost.
    """

    name: str
    mode: Mode
    host: str
    port: int
    context: int | None
    rows: int
    queue: int
    budget: int
    grace: int
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Session:
    """Use as a context: at its end the processes of the job part."""

    release: Path
    model: Model

    @classmethod
    def open(
        cls, release: Path, numerics: NumericsName | None, dtype: str, device: str, operators: str, *,
        speculate: bool = False,
    ) -> Session:  # fmt: skip
        """Load, and say on stderr what was loaded.

        Args:
            release: its folder.
            numerics: None: the release's own.
            dtype: name of torch's.
            device: see `load`.
            operators: see `load`.
            speculate: also load the MTP stage, for runners that draft with it.
        """
        model = load(release, numerics, dtype, device, operators=operators, mtp=speculate)
        if model.groups.is_leader:
            said = f"{model.numerics.name} numerics in {dtype}, {model.ops.name} operators, {model.device.torch_device}"
            print(f"{release}: {said}, {model.groups.mp} rank(s), {describe_steps(model)}", file=sys.stderr)
        return cls(release, model)

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
        return Runner(self.model, rows, context, speculate=self.model.mtp is not None)

    def tokenizer(self) -> Tokenizer:
        """The release's."""
        return Tokenizer(self.release)

    def efforts(self) -> Efforts:
        """What the release makes of the efforts that chats name."""
        return read_efforts(self.release)

    def serve(self, serving: Serving, *, as_json: bool = False) -> None:
        """Answer requests until SIGINT or SIGTERM; then no new ones, and the others get `grace` seconds to end.

        When requests are accepted, a line on stderr says where; with `as_json`, a JSON document on stdout.

        Raises:
            ResourceError: the packages of the server are not installed.
        """
        runner = self.runner(serving.rows, serving.context)
        if not self.model.groups.is_leader:
            runner.follow()
            return
        try:
            from flagrelease.engine.serve.guard import Guard
            from flagrelease.engine.serve.listen import listen
            from flagrelease.engine.serve.server import Served, make_app
            from flagrelease.engine.serve.service import Service
        except ModuleNotFoundError as error:
            raise ResourceError(f"serving needs {error.name}, which is not installed: {remedy('serve')}") from error
        tokenizer, efforts = self.tokenizer(), self.efforts()
        say(f"{self.release}: {efforts.said}")
        service = Service(Scheduler(runner, tokenizer, serving.budget), serving.queue)
        app = Guard(make_app(Served(service, tokenizer, serving.name, serving.mode, efforts)), serving.key)
        signal.signal(signal.SIGTERM, _leave)  # uvicorn sends the signal again when it is done
        service.start()
        try:
            listen(app, serving.host, serving.port, serving.grace, lambda: self._announce(serving, runner, as_json))
        finally:
            service.stop()
            runner.stop()

    def _announce(self, serving: Serving, runner: Runner, as_json: bool) -> None:
        host = f"[{serving.host}]" if ":" in serving.host else serving.host
        url = f"http://{host}:{serving.port}/v1"
        if not as_json:
            say(f"serving {serving.name} at {url}")
            return
        document = {
            "event": "serving", "url": url, "model": serving.name, "context": runner.context, "rows": serving.rows,
            "ranks": self.model.groups.mp, "numerics": self.model.numerics.name,
        }  # fmt: skip
        print(json.dumps(document, ensure_ascii=False), flush=True)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
