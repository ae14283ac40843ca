"""Coroutines that run together end together; a bare `asyncio.gather` left the siblings of a failure running."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from flagrelease.concurrently import end_tasks, run_together

PACKAGE = Path(__file__).parents[2] / "flagrelease"


async def _give(value: int, turns: int) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def _fail() -> int:
    await asyncio.sleep(0)
    raise LookupError("planted")


async def _wait_forever(ended: list[str]) -> int:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)  # takes a turn to end: whoever cancels has to wait for it
        ended.append("ended")
    raise AssertionError


def test_results_come_in_the_order_of_the_works() -> None:
    assert asyncio.run(run_together(_give(n, turns=5 - n) for n in range(5))) == [0, 1, 2, 3, 4]
    assert asyncio.run(run_together([])) == []


def test_a_failure_ends_the_siblings_before_it_is_raised() -> None:
    ended: list[str] = []

    async def work() -> int:
        with pytest.raises(LookupError, match="planted"):
            await run_together([_wait_forever(ended), _fail(), _wait_forever(ended)])
        return len(asyncio.all_tasks())

    assert asyncio.run(work()) == 1  # this one
    assert ended == ["ended", "ended"]


def test_a_cancelled_caller_ends_the_works() -> None:
    ended: list[str] = []

    async def work() -> int:
        caller = asyncio.ensure_future(run_together([_wait_forever(ended), _wait_forever(ended)]))
        await _give(0, turns=3)
        await end_tasks([caller])
        assert caller.cancelled()
        return len(asyncio.all_tasks())

    assert asyncio.run(work()) == 1
    assert ended == ["ended", "ended"]


def _bare_gathers(source: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr == "gather" and ast.unparse(node.value) == "asyncio")
        or (isinstance(node, ast.ImportFrom) and node.module == "asyncio" and "gather" in {a.name for a in node.names})
    ]


def test_nothing_else_gathers() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if _bare_gathers(path.read_text(encoding="utf-8"))]
    assert [path.name for path in files] == ["concurrently.py"]
    assert _bare_gathers("import asyncio\nawait asyncio.gather(a, b)") == [2]
    assert _bare_gathers("from asyncio import gather") == [1]
