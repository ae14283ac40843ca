"""Sums over the ranks of one host through memory that each of them can write to, inside a kernel.

A rank writes its number together with the exchange's number, as one word of eight bytes, into every other rank's
memory, and reads what the others have written into its own until each word bears the number of this exchange. A word
is written and read whole, so that no order between words matters and nothing has to be fenced: what NCCL calls its LL
protocol. Every rank adds the ranks' numbers in the order of ranks, in FP32, and so all get the same bits, every time.

All ranks do the same exchanges in the same order. Two halves of the memory are used in turn, which suffices: a rank
begins exchange n + 2 when it has read all of n + 1, and the others sent that after they had read all of n.

Legend: R ranks, B rows, S parts, N columns.
"""
# ruff: noqa: N803  (constants, dimensions of the legend)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import INTERPRETED, cast, jit
from flagrelease.engine.kernels.layout import ceil_div, unit_columns
from flagrelease.engine.kernels.row_vectors import sum_parts

COLUMNS = 256
_PROGRAMS_BITS = 20  # of a ticket; the others count exchanges
FIRST_TICKET = 1 << _PROGRAMS_BITS  # the first exchange has number 1, which memory of zeros does not bear
_PROGRAMS = tl.constexpr(FIRST_TICKET)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the kernels of one rank need.

    Attributes:
        memory: int64 [2, R, capacity], zeros at first: where the other ranks write what this one reads.
        addresses: int64 [R], on the device: where each rank's memory is for this one.
        ticket: int64 [1], `FIRST_TICKET` at first: the number of the exchange, and how many programs have taken it.
        rank: this one.
        views: every rank's memory as this one sees it, which stays mapped as long as these are held.
    """

    memory: Tensor
    addresses: Tensor
    ticket: Tensor
    rank: int
    views: Sequence[Tensor]

    @property
    def ranks(self) -> int:
        """R."""
        return self.memory.shape[1]

    @property
    def capacity(self) -> int:
        """How many numbers an exchange can have."""
        return self.memory.shape[2]


@jit
def _store_word(at: tl.tensor, word: tl.tensor, inside: tl.tensor) -> None:
    """Write words where another device reads them while this kernel runs: at once, and each as a whole."""
    if INTERPRETED:
        tl.store(at, word, mask=inside)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $3, 0; @p st.relaxed.sys.global.b64 [$1], $2; mov.b32 $0, 0; }",
            "=r,l,l,r",
            [at.to(tl.int64), word, inside.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@jit
def exchange_number(ticket_ptr: tl.tensor) -> tl.tensor:
    """The number of this exchange, the same in all programs of the kernel."""
    return tl.load(ticket_ptr, volatile=True) // _PROGRAMS


@jit
def count_program(ticket_ptr: tl.tensor, programs: tl.tensor) -> None:
    """To be called once by each of the kernel's `programs` that has read the number; nobody waits for it.

    Together they add `FIRST_TICKET`, so that the number grows when the last one is counted, and all have read it.
    """
    first = (tl.program_id(0) + tl.program_id(1) == 0).to(tl.int64)
    tl.atomic_add(ticket_ptr, 1 + first * (_PROGRAMS - programs), sem="relaxed")


@jit
def next_address(addresses_ptr: tl.tensor, RANK: tl.constexpr, RANKS: tl.constexpr) -> tl.tensor:
    """Where the next rank's memory is: nobody's result, so it can be loaded before a kernel waits for any."""
    return tl.load(addresses_ptr + (RANK + 1) % RANKS)


@jit
def _mark(number: tl.tensor) -> tl.tensor:
    """The upper half of this exchange's words; never 0."""
    return (number % 0x7FFFFFFF + 1) << 32


@jit
def send(
    own: tl.tensor, at: tl.tensor, inside: tl.tensor, number: tl.tensor, address: tl.tensor, addresses_ptr: tl.tensor,
    capacity: tl.tensor, RANK: tl.constexpr, RANKS: tl.constexpr,
) -> None:  # fmt: skip
    """Give the other ranks this one's FP32 numbers for the places `at`, each below `capacity`.

    `address`: the next rank's, see `next_address`.
    """
    word = (own.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | _mark(number)
    place = ((number % 2) * RANKS + RANK) * capacity + at
    for step in tl.static_range(1, RANKS):
        if step > 1:
            address = tl.load(addresses_ptr + (RANK + step) % RANKS)
        _store_word(address.to(tl.pointer_type(tl.int64)) + place, word, inside)


@jit
def _missing(word: tl.tensor, mark: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """How many words [.., ..] do not bear the mark in their upper half; outside there is nothing to wait for."""
    return tl.sum(tl.sum((inside & ((word >> 32) != (mark >> 32))).to(tl.int32), axis=1), axis=0)


@jit
def receive(
    own: tl.tensor, at: tl.tensor, inside: tl.tensor, number: tl.tensor, memory_ptr: tl.tensor, capacity: tl.tensor,
    RANK: tl.constexpr, RANKS: tl.constexpr, looks: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """All ranks' numbers for the places `at` added up in the order of ranks, when they have come.

    `looks`: how often to look for them before whatever is there is taken; 0: for ever.
    """
    total = tl.zeros_like(own)
    mark = _mark(number)
    for rank in tl.static_range(RANKS):
        part = own
        if rank != RANK:
            place = memory_ptr + ((number % 2) * RANKS + rank) * capacity + at
            word = tl.load(place, mask=inside, other=0, volatile=True)
            looked = number * 0 + 1  # 64 bits: it does not come to 0 again
            while (_missing(word, mark, inside) > 0) & (looked != looks):
                word = tl.load(place, mask=inside, other=0, volatile=True)
                looked += 1
            # Once more: of a tile with fewer words than threads several threads load the same word, each for itself,
            # and what was counted is the look of one of them. Now that it has seen the word the others do too.
            word = tl.load(place, mask=inside, other=0, volatile=True)
            part = word.to(tl.int32).to(tl.float32, bitcast=True)
        if rank == 0:
            total = part
        else:
            total += part
    return total


@early_kernel
def _sum_kernel(
    parts_ptr: tl.tensor,
    y_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    addresses_ptr: tl.tensor,
    ticket_ptr: tl.tensor,
    part_stride: tl.tensor,
    row_stride: tl.tensor,
    capacity: tl.tensor,
    N: tl.tensor,
    programs: tl.tensor,
    looks: tl.tensor,
    S: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    address = next_address(addresses_ptr, RANK, RANKS)
    wait_for_results()
    number = exchange_number(ticket_ptr)
    b = tl.program_id(0).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    own = sum_parts(parts_ptr + b * row_stride, n, n < N, part_stride, S, S)
    send(own, b * N + n, n < N, number, address, addresses_ptr, capacity, RANK, RANKS)
    count_program(ticket_ptr, programs)
    total = receive(own, b * N + n, n < N, number, memory_ptr, capacity, RANK, RANKS, looks)
    tl.store(y_ptr + b * N + n, cast(total, y_ptr.dtype.element_ty), mask=n < N)


def sum_over_ranks(parts: Tensor, exchange: Exchange, dtype: torch.dtype, looks: int = 0) -> Tensor:
    """Every rank's parts [S, B, N], any float dtype, added up in FP32 and rounded to `dtype` once: [B, N].

    S may differ between ranks; B * N is at most the exchange's capacity. `looks`: how often a program looks for the
    others' numbers before it goes on with what is there; 0: for ever.
    """
    S, B, N = parts.shape
    require_room(parts, exchange)
    parts = unit_columns(parts)
    y = torch.empty(B, N, dtype=dtype, device=parts.device)
    grid = B, ceil_div(N, COLUMNS)
    _sum_kernel[grid](
        parts, y, exchange.memory, exchange.addresses, exchange.ticket, parts.stride(0), parts.stride(1),
        exchange.capacity, N, grid[0] * grid[1], looks, S=S, RANK=exchange.rank, RANKS=exchange.ranks, BLOCK_N=COLUMNS,
    )  # fmt: skip
    return y


def require_room(parts: Tensor, exchange: Exchange) -> None:
    """Refuse more numbers than the other ranks' memory has room for."""
    if parts[0].numel() > exchange.capacity:
        raise ValueError(f"parts {tuple(parts.shape)}: an exchange takes {exchange.capacity} numbers")
