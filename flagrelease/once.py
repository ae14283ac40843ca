"""`once`: results that threads share, each made by the first that asks while the others wait for it.

`functools.cache` makes a result in every thread that asks before the first has it. Sixteen workers begin together, so
each compiled the loops and computed the tables for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def once(function: Callable[P, R]) -> Callable[P, R]:
    """Keep what `function` returns for each set of arguments, which are hashable; it never returns None.

    Only one call of it runs at a time. A result that is there costs one look-up, without a lock.
    """
    results: dict[Hashable, R] = {}
    making = Lock()

    @wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        key = (args, *sorted(kwargs.items()))
        result = results.get(key)
        if result is None:
            with making:
                result = results.get(key)
                if result is None:
                    result = results[key] = function(*args, **kwargs)
        return result

    return kept
