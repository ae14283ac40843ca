"""`Port`: the release as a running model, loaded once for all stages that need it, on all ranks of the job.

Every rank runs the same command. The first one leads: it runs the stages and gives orders to the others, which only
hold their part of the model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

from flagrelease import __version__
from flagrelease.chips.table import Chip
from flagrelease.device import Device, open_device
from flagrelease.errors import ResourceError, UsageError
from flagrelease.extras import remedy
from flagrelease.ranks.job import is_leader, ranks
from flagrelease.records.manifest import Dtype

if TYPE_CHECKING:
    from flagrelease.engine.batch.scheduler import Scheduler
    from flagrelease.engine.loaded import AnyModel
    from flagrelease.engine.session import Session
    from flagrelease.records.report import Stage

LogitsRun = Callable[["AnyModel"], "Stage"]


@dataclass(frozen=True, slots=True)
class _Answer:
    rows: int
    context: int


_Order = Literal["logits", "stop"] | _Answer
_ORDERS: TypeAdapter[_Order] = TypeAdapter(_Order)  # they travel as JSON


def find_device(chip: Chip, wanted: str, *, anywhere: bool) -> Device | str:
    """Open the device to run on, or say in words why there is none.

    Args:
        chip: whose kind of device counts, unless `anywhere`.
        wanted: `auto` is the chip's kind, or with `anywhere` whatever is there.

    Raises:
        UsageError: a device of another kind than the chip's is asked for.
    """
    if importlib.util.find_spec("torch") is None:
        return f"torch is not installed: {remedy('engine')}"
    name = wanted if wanted != "auto" or anywhere else chip.id
    try:
        device = open_device(name)
    except ResourceError as error:
        return str(error)
    if not anywhere and device.type != chip.torch_device:
        raise UsageError(
            f"--device {wanted}: the rules count only what {chip.id}'s own kind of device ({chip.torch_device}) "
            "computed; a recipe with `validation.device: any` says otherwise"
        )
    return device


class Port:
    """Loads the model when it is first needed. Use it as a context, so that the other ranks end with the first."""

    def __init__(self, release: Path, dtype: Dtype, device: Device, operators: str, rows: int) -> None:
        """Keep the choices; nothing is loaded yet. `rows`: answers at once."""
        self._release, self._dtype, self._device = release, dtype, device
        self._operators, self._rows = operators, rows
        self._session: Session | None = None

    def __enter__(self) -> Port:
        """Use as a context."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Tell the other ranks to stop, and leave the job. After an error whoever started the ranks ends them."""
        if error is None and ranks() > 1:
            if is_leader():
                self._order("stop")
            self.session.__exit__(None, None, None)

    @property
    def session(self) -> Session:
        """The loaded release, in bfloat16."""
        if self._session is None:
            from flagrelease.engine.numerics import OF_RELEASE
            from flagrelease.engine.session import Session

            self._session = Session.open(
                self._release, OF_RELEASE[self._dtype], "bfloat16", self._device.type, self._operators
            )
        return self._session

    @property
    def stack(self) -> str:
        """Machine and software, as the report names them."""
        model = self.session.model
        count = f"{model.groups.mp} x " if model.groups.mp > 1 else ""
        return (
            f"{count}{self._device.name}, flagrelease {__version__}, {model.numerics.name} numerics, {model.ops.name}"
        )

    def logits(self, run: LogitsRun) -> Stage:
        """Run the logits stage on all ranks."""
        self._order("logits")
        return run(self.session.model)

    @contextmanager
    def answering(self, longest_prompt: int, max_tokens: int) -> Iterator[Scheduler]:
        """Give a scheduler whose context holds a prompt and its answer."""
        from flagrelease.engine.batch.scheduler import Scheduler

        order = _Answer(self._rows, longest_prompt + max_tokens)
        self._order(order)
        runner = self.session.runner(order.rows, order.context)
        try:
            yield Scheduler(runner, self.session.tokenizer())
        finally:
            runner.stop()

    def follow(self, run: LogitsRun | None) -> None:
        """On ranks that do not lead: do what the leader orders. `run`: None if no logits will be asked for."""
        groups = self.session.model.groups
        while (order := _ORDERS.validate_json(groups.hear())) != "stop":
            if isinstance(order, _Answer):
                self.session.runner(order.rows, order.context).follow()
            elif run is not None:
                run(self.session.model)

    def _order(self, order: _Order) -> None:
        self.session.model.groups.tell(_ORDERS.dump_json(order))
