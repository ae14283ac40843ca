"""What ranks send each other: orders as JSON, bytes of any length. Before, orders were pickles, which can run code."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from ranks import on_ranks

import flagrelease
from flagrelease.engine.batch.orders import (
    Decode,
    Draft,
    Load,
    Next,
    Order,
    Prefill,
    Save,
    Stop,
    Together,
    decode,
    encode,
)
from flagrelease.engine.control import broadcast_bytes, open_control

ORDERS: tuple[Order, ...] = (
    Prefill(3, tuple(range(5000)), True, None, False),
    Prefill(0, (7,), False, 129279, True),
    Together((Prefill(4, (1, 2), True, 5, False), Prefill(5, (3,), False, None, False))),
    Next((0, 3)),
    Decode(((), (1,), (2, 3)), (2,)),
    Draft(((), (4, 5))),
    Save(2, 9, (7, 8)),
    Load(1, 9),
    Stop(),
)
LONG = bytes(n % 251 for n in range(100_000))
LENGTHS = (0, 1, 4087, 4088, 4089, 100_000)  # a frame holds 4088 bytes


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_arrives_as_it_was_sent(order: Order) -> None:
    assert decode(encode(order)) == order


def test_every_kind_of_order_is_sent_here() -> None:
    assert {type(order) for order in ORDERS} == set(get_args(Order))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        pickle.dumps(Stop()),
        b"exec {}",
        b"Decode {}",
        b'Decode {"tokens": [["1"]], "rejected": []}',
        b'Prefill {"row": 1.5, "tokens": [], "first": true, "following": null, "every": false}',
        encode(ORDERS[0])[:-1],
    ],
)
def test_what_is_no_order_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"order|validation error"):
        decode(message)


def _heard() -> list[bytes]:
    control = open_control()
    assert control is not None
    leads = torch.distributed.get_rank() == 0
    heard = [broadcast_bytes(control, LONG[:length] if leads else b"not this") for length in LENGTHS]
    seen: list[list[bytes] | None] = [None, None]
    torch.distributed.all_gather_object(seen, heard)
    return seen[1] or []


def test_bytes_of_any_length_reach_the_other_rank() -> None:
    assert on_ranks(2, _heard) == [LONG[:length] for length in LENGTHS]


def _patience() -> float:
    control = open_control()
    assert control is not None
    seconds: float = control._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return seconds


def test_ranks_wait_for_an_order_as_long_as_nobody_asks() -> None:
    # gloo's default is 30 minutes, after which the ranks of an idle server failed
    assert on_ranks(2, _patience) > 365 * 24 * 3600


def pickling(source: str) -> list[str]:
    """What of a file's source unpickles: collectives of objects do, with what comes from the network."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [f"{alias.name}." for alias in node.names]
        else:
            continue
        found += [name for name in names if PICKLING.match(name)]
    return found


PICKLING = re.compile(r"(pickle|marshal|shelve)\.|(torch\.)?(dist|distributed)\.[^_].*object|torch\.load$")


def test_nothing_of_the_package_unpickles() -> None:
    package = Path(flagrelease.__file__).parent
    found = {str(path.relative_to(package)): pickling(path.read_text()) for path in package.rglob("*.py")}
    ray = {
        "convert/sharing/job.py",
        "convert/sharing/ray_cluster.py",
    }  # Ray's own nature
    assert {file for file, names in found.items() if names} == ray


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import loads",
        "from marshal import loads as read",
        "dist.broadcast_object_list(x)",
        "distributed.all_gather_object(x, y)",
        "from torch.distributed import gather_object",
        "torch.load(x)",
    ],
)
def test_planted_unpickling_is_seen(planted: str) -> None:
    assert pickling(f"def work():\n    {planted}\n")
