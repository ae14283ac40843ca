"""Sums over ranks inside kernels: processes that write into each other's memory, which here is a mapped file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from flagrelease.engine.kernels import reference
from flagrelease.engine.kernels.early_launch import start_after_all
from flagrelease.engine.kernels.exchange import FIRST_TICKET, Exchange, sum_over_ranks
from flagrelease.engine.kernels.norms.hc_post_mixes import hc_post_mixes_over_ranks

H, M = 70, 4
CAPACITY = 40 * H
# Rows of one exchange after another: larger ones after smaller, odd counts, and more tokens than a program has.
ROWS = (1, 3, 21, 1)

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="processes need devices of their own"
)


def parts_of(rank: int, n: int, rows: int) -> Tensor:
    """Of exchange `n`; ranks have different numbers of parts."""
    generator = torch.Generator().manual_seed(100 * n + rank)
    return torch.randn(2 + rank, rows, H, generator=generator) * 10.0 ** (3 * rank)


def streams_of(n: int, rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7000 + n)
    x = torch.randn(rows, M, H, generator=generator)
    return x, *(torch.randn(shape, generator=generator) for shape in ((rows, M), (rows, M, M), (2 * M + M * M, M * H)))


def mapped(folder: Path, ranks: int, rank: int) -> Exchange:
    """This rank's view of every rank's memory, each of which is a file."""
    shape = 2, ranks, CAPACITY
    size = 2 * ranks * CAPACITY
    every = [torch.from_file(str(folder / str(r)), shared=True, size=size, dtype=torch.int64) for r in range(ranks)]
    addresses = torch.tensor([each.data_ptr() for each in every])
    return Exchange(every[rank].view(shape), addresses, torch.tensor([FIRST_TICKET]), rank, every)


def work(rank: int, ranks: int, folder: Path) -> None:
    exchange = mapped(folder, ranks, rank)
    results: list[Tensor] = []
    for n, rows in enumerate(ROWS):
        results.append(sum_over_ranks(parts_of(rank, n, rows), exchange, torch.float32))
        results += hc_post_mixes_over_ranks(parts_of(rank, n + 50, rows), *streams_of(n, rows), exchange)
    torch.save((results, exchange.ticket), folder / f"result{rank}")


def on_processes(ranks: int, folder: Path) -> list[tuple[list[Tensor], Tensor]]:
    mp.spawn(work, (ranks, folder), nprocs=ranks, join=True)
    return [torch.load(folder / f"result{rank}") for rank in range(ranks)]


def in_order(ranks: int, n: int, rows: int, *, backwards: bool = False) -> Tensor:
    """In FP32, each rank's parts first, then the ranks one after the other: what every bit of a sum follows from."""
    sums = []
    for rank in range(ranks):
        first, *others = parts_of(rank, n, rows)
        for part in others:
            first = first + part
        sums.append(first)
    total, *others = reversed(sums) if backwards else sums
    for each in others:
        total = total + each
    return total


@interpreted
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_ranks_sum_in_the_order_of_ranks(ranks: int, tmp_path: Path) -> None:
    every = on_processes(ranks, tmp_path)
    for results, ticket in every:
        assert int(ticket) == (1 + 2 * len(ROWS)) * FIRST_TICKET
        for got, first in zip(results, every[0][0], strict=True):
            assert torch.equal(got, first), "all ranks have the same bits"
    results = iter(every[0][0])
    for n, rows in enumerate(ROWS):
        assert torch.equal(next(results), in_order(ranks, n, rows)), n
        expected = reference.hc_post_mixes(in_order(ranks, n + 50, rows)[None], *streams_of(n, rows))
        got = next(results), next(results).sum(0), next(results).sum(0)
        for one, other in zip(got, (expected[0], expected[1][0], expected[2][0]), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max())), n


def test_another_order_would_be_seen() -> None:
    assert not any(
        torch.equal(in_order(3, n, rows), in_order(3, n, rows, backwards=True)) for n, rows in enumerate(ROWS)
    )


def let_through(exchange: Exchange) -> None:
    """Make the next exchange wait for nobody: every word that it expects is there, as 0."""
    number = int(exchange.ticket) // FIRST_TICKET
    exchange.memory.fill_((number % 0x7FFFFFFF + 1) << 32)


@pytest.mark.gpu
def test_two_ranks_on_one_device() -> None:
    """Their kernels run at once, on two streams, wait for each other's words, and are recorded as such."""
    process = mp.get_context("spawn").Process(target=two_ranks_on_one_device)
    process.start()
    process.join(90)
    process.kill()  # a kernel that waits for ever ends with its process
    process.join()
    assert process.exitcode == 0


def two_ranks_on_one_device() -> None:
    gpu = torch.device("cuda", 0)
    memories = [torch.zeros(2, 2, CAPACITY, dtype=torch.int64, device=gpu) for _ in range(2)]
    addresses = torch.tensor([memory.data_ptr() for memory in memories], device=gpu)
    exchanges = [
        Exchange(memory, addresses, torch.tensor([FIRST_TICKET], device=gpu), rank, memories)
        for rank, memory in enumerate(memories)
    ]
    given = [[parts_of(rank, n, rows).to(gpu) for n, rows in enumerate(ROWS)] for rank in range(2)]
    streams = [tuple(each.to(gpu) for each in streams_of(n, rows)) for n, rows in enumerate(ROWS)]
    lanes = [torch.cuda.Stream(gpu) for _ in range(2)]

    def works(rank: int, n: int) -> list[Tensor]:
        parts, exchange = given[rank][n], exchanges[rank]
        return [sum_over_ranks(parts, exchange, torch.float32), *hc_post_mixes_over_ranks(parts, *streams[n], exchange)]

    for rank in range(2):  # a kernel that is loaded while another one waits would wait for that one
        for n in range(len(ROWS)):
            for begin in (start_after_all, lambda: None):  # a launch that waits for all is another kernel
                let_through(exchanges[rank])
                begin()
                sum_over_ranks(given[rank][n], exchanges[rank], torch.float32)
            let_through(exchanges[rank])
            hc_post_mixes_over_ranks(given[rank][n], *streams[n], exchanges[rank])
    torch.cuda.synchronize(gpu)

    def all_works() -> list[list[list[Tensor]]]:
        results: list[list[list[Tensor]]] = [[], []]
        here = torch.cuda.current_stream(gpu)
        for n in range(len(ROWS)):
            for rank, lane in enumerate(lanes):
                lane.wait_stream(here)
                with torch.cuda.stream(lane):
                    start_after_all()
                    results[rank].append(works(rank, n))
            for lane in lanes:
                here.wait_stream(lane)
        return results

    for memory in memories:
        memory.zero_()
    torch.cuda.synchronize(gpu)
    graph = torch.cuda.CUDAGraph()
    eager = all_works()
    torch.cuda.synchronize(gpu)
    with torch.cuda.graph(graph):
        captured = all_works()
    for results in (eager, captured):
        for n, rows in enumerate(ROWS):
            for _ in range(30 if results is captured else 1):
                if results is captured:
                    graph.replay()
                torch.cuda.synchronize(gpu)
                for one, other in zip(results[0][n], results[1][n], strict=True):
                    assert torch.equal(one, other), "both ranks have the same bits"
                assert torch.equal(results[0][n][0].cpu(), in_order(2, n, rows))
                expected = reference.hc_post_mixes(in_order(2, n, rows)[None], *streams_of(n, rows))
                assert torch.allclose(results[0][n][1].cpu(), expected[0], rtol=1e-4, atol=1e-3)
