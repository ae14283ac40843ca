"""Coroutines that run beside each other: none outlives the call that started it.

`asyncio.TaskGroup` does the same, but only from Python 3.11 on, and this project supports 3.10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def run_together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently and return their results in the order of `works`.

    When one fails, or the caller is cancelled, the others are cancelled and have ended before this returns. A bare
    `asyncio.gather` reports the first failure and leaves the others running.

    Raises:
        BaseException: whatever the first coroutine to fail raised.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end_tasks(tasks)


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the tasks that still run and wait until all have ended. What they raise meanwhile is dropped."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
