"""Tensors as the kernels address them: rows of contiguous columns, cut into tiles."""

from __future__ import annotations

from torch import Tensor


def ceil_div(a: int, b: int) -> int:
    """The number of blocks of `b` that cover `a`. (Triton's takes the host 5 us, ten times as long.)"""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is `n` or more; 1 for 0."""
    return 1 << (n - 1).bit_length() if n > 0 else 1


def doubled(smallest: int, n: int) -> int:
    """The first of smallest, 2 smallest, 4 smallest, .. that is not below `n`."""
    return smallest * next_power_of_2(ceil_div(n, smallest))


def rows(x: Tensor) -> Tensor:
    """x [.., d] as [R, d] with unit column stride: a view where its strides allow one, else a copy. For reading."""
    return unit_columns(x.reshape(-1, x.shape[-1]))


def unit_columns(x: Tensor) -> Tensor:
    """`x`, copied if its last dimension is not contiguous. For reading."""
    return x if x.stride(-1) == 1 else x.contiguous()


def output(like: Tensor, out: Tensor | None) -> Tensor:
    """The tensor that a result of `like`'s shape and dtype is written to: `out` if it fits, or a new one."""
    if out is None:
        return like.new_empty(like.shape)
    if out.shape != like.shape or out.dtype != like.dtype or out.device != like.device or out.stride(-1) != 1:
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)}, the result {like.dtype} {tuple(like.shape)}")
    return out


def power_of_two_columns(x: Tensor) -> int:
    """The columns of `x`, contiguous and a power of two: what kernels hold whole.

    Raises:
        ValueError: they are not.
    """
    columns = x.shape[-1]
    if columns & (columns - 1) or x.stride(-1) != 1 or x.stride(-2) != columns:
        raise ValueError(f"{tuple(x.shape)} with strides {x.stride()}: contiguous rows of a power of two are needed")
    return columns


def check_positions(positions: Tensor, rows: int) -> None:
    """Refuse positions that are not one number a row, side by side, as kernels address them.

    They are not copied: kernels load them before they wait for what is queued earlier, as a copy would be.

    Raises:
        ValueError: they are not.
    """
    check_given(positions, rows, "positions")


def check_tokens(tokens: int, cache: Tensor) -> None:
    """Refuse tokens that are not as many for each row of `cache` [B, ..]: token t is of row t mod B.

    Raises:
        ValueError: they are not.
    """
    if tokens % len(cache):
        raise ValueError(f"{tokens} tokens for {len(cache)} rows of a cache: all rows have as many")


def check_given(numbers: Tensor, rows: int, name: str) -> None:
    """As `check_positions`, for whatever else is given to a step.

    Raises:
        ValueError: they are not one number a row, side by side.
    """
    if numbers.shape != (rows,) or not numbers.is_contiguous():
        raise ValueError(f"{name} {tuple(numbers.shape)}, {numbers.stride()} apart: {rows} lie side by side")
