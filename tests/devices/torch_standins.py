"""Torch modules that pretend: names and signatures as recorded from a vendor's package, no others; they log calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flagrelease import device
from flagrelease.device import open_device

RECORDS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("signatures.json").read_text(encoding="utf-8"))
KINDS = {"torch": "cuda", "torch_npu": "npu", "torch_musa": "musa"}


def signature(parameters: list[list[Any]]) -> Signature:
    """Of a recorded function, without `self`."""
    return Signature(
        [
            Parameter(name, getattr(Parameter, kind), default=None if has_default else Parameter.empty)
            for name, kind, has_default in parameters
        ]
    )


class StandIn:
    """`torch.cuda`, `torch.npu` or `torch.musa` of one recorded version, with two devices.

    A name that the version does not have raises AttributeError, arguments that it does not take TypeError, as the
    package would. `log` has what was called, with the arguments: functions by name, methods as Class.method.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self._names = record["names"]
        self._module = f"torch.{KINDS[record['package']]}"
        self.log: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._current = self._made("Stream", "default")
        self._answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "get_device_name": lambda index: f"card {index}",
            "mem_get_info": lambda index: (10 + index, 100),
            "can_device_access_peer": lambda index, other: True,
            "get_device_properties": lambda index: SimpleNamespace(total_memory=100),
            "current_stream": lambda: self._current,
            "stream": self._queue_to,
            "graph": lambda graph, pool=None: self._queue_to(graph),
            "graph_pool_handle": lambda: "pool",
            "record_event": lambda: self._made("Event", "recorded"),
        }

    @property
    def called(self) -> set[str]:
        return {name for name, *_ in self.log}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._names:
            raise AttributeError(f"module {self._module!r} has no attribute {name!r}")
        entry = self._names[name]
        if "methods" in entry and name not in self._answers:
            return self._logged(name, entry["parameters"], lambda *given, **named: self._made(name, "new"))
        return self._logged(name, entry["parameters"], self._answers.get(name, lambda *given: None))

    def _logged(self, name: str, parameters: list[list[Any]], answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            try:
                signature(parameters).bind(*given, **named)
            except TypeError as error:
                raise TypeError(f"{self._module}.{name}{signature(parameters)}: {error}") from None
            self.log.append((name, given, named))
            return answer(*given, **named)

        return call

    def _made(self, kind: str, how: str) -> Any:
        """An object of a class: its recorded methods, no others."""
        methods = {
            name: self._logged(f"{kind}.{name}", given, self._answers_of(name))
            for name, given in self._names[kind]["methods"].items()
        }
        return type(kind, (), {**{name: staticmethod(one) for name, one in methods.items()}, "how": how})()

    def _answers_of(self, method: str) -> Callable[..., Any]:
        return lambda *given: self._answers[method](*given) if method in self._answers else None

    @contextmanager
    def _queue_to(self, target: Any) -> Iterator[None]:
        before, self._current = self._current, target
        yield
        self._current = before


def installed(standin: StandIn, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """`standin` in the place of its torch module, until the generator goes on."""
    for streams in (device._recorder, device._lane):
        streams.cache_clear()
    monkeypatch.setattr(torch, KINDS[record["package"]], standin, raising=False)
    if record["package"] != "torch":
        monkeypatch.setitem(sys.modules, record["package"], sys)  # any module: only its import is asked for
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **named: empty(*shape, **named))
    yield standin
    for streams in (device._recorder, device._lane):
        streams.cache_clear()


def use(kind: str) -> list[str]:
    """All that a Device does, once; returns what ran, in order."""
    ran: list[str] = []
    one = open_device(kind, 1)
    assert (one.name, one.memory(), one.why_eager) == ("card 1", (11, 100), None)
    one.set_current()
    one.synchronize()
    assert one.reaches([0])
    one.capture(lambda: ran.append("captured"), one.memory_pool())()
    one.capture(lambda: ran.append("alone"))()
    ran.append(one.beside(0, lambda x: f"beside {x}", 3)())
    one.finish_queued()
    assert one.fetch(torch.arange(3))().tolist() == [0, 1, 2]
    return ran
