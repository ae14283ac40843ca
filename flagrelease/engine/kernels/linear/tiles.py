"""How the products of `linear.py` are cut into programs: tile sizes, parts of K, what is asked for ahead.

Only speed depends on anything here. Legend: K inputs.
"""
# ruff: noqa: N803  (dimensions of the legend)

from dataclasses import dataclass

from torch import Tensor

from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2
from flagrelease.engine.kernels.targets import TARGET

SHORTEST_PART = 512  # columns


def tile_shape(rows: int, outputs: int, fmt: str, single: bool) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, BLOCK_K, warps); only speed depends on them.

    Args:
        rows: of x, or the mean number that an expert gets.
        outputs: of all groups or experts together; few of them are cut finer, so that a small batch fills the chip.
        fmt: of the weight.
        single: FP32 operands, which take twice the shared memory.
    """
    if rows > 64 and not single:
        return (64, 128, 128, 4) if fmt == "fp4" else (128, 128, 64, 8)
    block_m = max(16, next_power_of_2(min(rows, 64)))
    block_n, filled = 64, TARGET.sizes.filled
    while block_n > 16 and outputs // block_n < (2 * filled if block_n == 64 and rows <= 16 else filled):
        block_n //= 2
    # Every warp holds all of x for its outputs: with few rows few warps, or x is decoded more often than the weight.
    warps = 2 if rows <= 16 and fmt != "fp4" and not single else 4
    return block_m, block_n, 32 if single else 128, warps


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program works on; only speed depends on it.

    `left`: see `product`. `ahead`: the most cache lines of a weight row that it asks for before it may begin.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    left: bool
    ahead: int

    @classmethod
    def of(cls, rows: int, outputs: int, columns: int, fmt: str, coded: bool, single: bool) -> "Tile":
        """See `tile_shape`; `columns` of a part. Measured on an H200 in whole steps of V4-Flash, of 1 and 16 rows.

        With more rows their scales would cost more than the weight does: one for each column of the result, where it is
        left. Lines that are asked for too early are in the way of what the kernel before still reads: a product that is
        fast by itself asks for few.
        """
        if coded and fmt == "fp8" and rows > 64:
            return cls(64, 128, 128, 4, 4, False, 0)
        if rows > 64 or fmt == "fp4" or single:
            return cls(*tile_shape(rows, outputs, fmt, single), 3, False, 0 if rows > 64 else 8)
        block_m, steps = max(16, next_power_of_2(rows)), ceil_div(columns, 128)
        wide = outputs >= 2 * TARGET.sizes.filled * 128
        if coded and (wide or rows > 32):
            # As many steps on their way as leave room for all programs at once.
            block_n = 128 if wide else 64
            turns = ceil_div(outputs // block_n, TARGET.sizes.multiprocessors)
            room = TARGET.sizes.shared_memory // ((block_m + block_n) * 128) // turns
            return cls(block_m, block_n, 128, 4, max(3, min(room, 6)), rows <= 32, 0 if wide else 2)
        if fmt == "fp8":
            return cls(block_m, 64, 128, 4, 6, True, 2) if coded else cls(block_m, 64, 128, 4, 4, True, 8)
        return cls(block_m, 64, 128, 4, 4 if steps <= 8 else 6, True, 8)


def enough_programs(fmt: str, coded: bool) -> int:
    """Programs that keep a chip's memory busy when each has few rows, by what they do with a weight."""
    if fmt == "plain":
        return 256
    return 1024 if coded else 512


def prefetched_lines(K: int, columns: int, w: Tensor, most: int) -> int:
    """Cache lines of a weight row that a program asks for before it may begin.

    Of its `columns`, as many as their greatest power of two; none where the last part is shorter.
    """
    lines = columns * w.element_size() // 128
    whole = w.element_size() <= 2 and K % columns == 0
    return min(lines & -lines, most) if whole else 0
