"""Parts of a step that do not need each other, on two streams of the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flagrelease.device import Device
from flagrelease.engine.kernels.operators import Operators

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Branches:
    """`Device.beside` for operators, which are told where the streams part and where they meet."""

    ops: Operators
    device: Device

    def beside(self, work: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        """Queue `work(*arguments)` beside what is queued next: `Device.beside`, where operators do not wait."""
        if not self.ops.captured:
            result = work(*arguments)
            return lambda: result
        join = self.device.beside(self._begun, work, *arguments)

        def joined() -> T:
            result: T = join()
            self.ops.wait_for_streams()
            return result

        return joined

    def _begun(self, work: Callable[..., T], *arguments: Any) -> T:
        self.ops.wait_for_streams()
        return work(*arguments)
