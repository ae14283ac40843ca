"""Whether two expressions in LaTeX are equal, by math-verify (sympy), in a process of its own.

It reads LaTeX with a grammar and evaluates nothing as code. What a broken model writes may still cost it minutes or
gigabytes (a tower of powers), or meet a fault in it; in a process of its own that ends in "cannot tell".
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotInTime  # the builtin one only since Python 3.11
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from flagrelease.errors import ResourceError
from flagrelease.extras import remedy
from flagrelease.ranks.lifetime import die_with
from flagrelease.validate.exams.items import Item
from flagrelease.validate.exams.latex import last_box
from flagrelease.validate.exams.marking.mark import Mark, other_than

_LONGEST = 400  # characters; a longer "expression" is a text, or the loop of a broken model
_SECONDS = 60.0  # to start the process, too; math-verify's own limits are 5 s for reading each and for comparing


class Compares(Protocol):
    """Tells whether two expressions are equal; `Equality` is one."""

    def equal(self, right: str, given: str) -> bool | None:
        """None where it cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class ExpressionMarker:
    """The inside of the last box, compared with the right expression. Without a box there is no answer."""

    equality: Compares

    def mark(self, item: Item, text: str) -> Mark:
        """As `Marker` says."""
        given = last_box(text)
        if given is None:
            return Mark(None)
        same = self.equality.equal(item.answer, given)
        return Mark(item.answer if same else other_than(given), undecided=same is None)


class Equality:
    """Compares expressions until it is closed; use it as a context."""

    def __init__(self) -> None:
        """Refuse where the package is missing.

        Raises:
            ResourceError: it is.
        """
        if importlib.util.find_spec("math_verify") is None:
            raise ResourceError(f"comparing expressions needs math_verify: {remedy('math')}")
        self._pool = _pool()

    def probe(self) -> None:
        """See that it compares, before hours are spent on what it would compare.

        Raises:
            ResourceError: it does not, as where the parser of LaTeX is missing: every answer would be undecided.
        """
        if self.equal(r"\frac{1}{2}", "0.5") is not True:
            raise ResourceError(f"math_verify does not find 1/2 equal to 0.5, so it is not whole: {remedy('math')}")

    def equal(self, right: str, given: str) -> bool | None:
        """Whether two expressions have the same value, or None where that cannot be told."""
        if right == given:
            return True
        if len(given) > _LONGEST:
            return None
        asked: Future[bool | None] = self._pool.submit(_equal, right, given)
        try:
            failed = asked.exception(_SECONDS)
        except NotInTime:
            self._restart()
            return None
        if isinstance(failed, BrokenProcessPool):
            self._restart()
        return None if failed is not None else asked.result()

    def _restart(self) -> None:
        _end(self._pool)
        self._pool = _pool()

    def __enter__(self) -> Equality:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        _end(self._pool)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (os.getpid(),))


def _end(pool: ProcessPoolExecutor) -> None:
    """Whatever it is doing."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)


# What follows runs in that process.


def _begin(parent: int) -> None:
    """It ends with this one, and Ctrl-C is for this one alone."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _equal(right: str, given: str) -> bool | None:
    """None where one of the two is no expression. Whatever else goes wrong is raised, and means the same."""
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    read = [
        parse(f"${text}$", extraction_config=[LatexExtractionConfig()], raise_on_error=True) for text in (right, given)
    ]
    if not all(read):
        return None
    return bool(verify(*read, raise_on_error=True))
