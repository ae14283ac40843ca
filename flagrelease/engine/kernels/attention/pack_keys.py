"""Keys and index keys rounded and put in rows of codes, and rows of keys read again, in Triton. Legend: D columns."""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.attention.key_rows import (
    decoded_keys,
    fetch_keys,
    index_row_bytes,
    load_index_keys,
    row_bytes,
    store_index_key,
    store_key,
)
from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.layout import ceil_div, rows
from flagrelease.engine.kernels.targets import TARGET
from flagrelease.model.v4.cache_size import INDEX_GROUP, KEY_GROUP, ROTATED, index_key_row_bytes, key_row_bytes

SLOTS = 16  # of keys that a program unpacks; four times as many of index keys


@early_kernel
def _pack_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    x_stride: tl.tensor,
    ROW: tl.constexpr,
    D: tl.constexpr,
    FILLED: tl.constexpr,
    INDEX: tl.constexpr,
) -> None:
    wait_for_results()
    r = tl.program_id(0).to(tl.int64)
    x = tl.load(x_ptr + r * x_stride + tl.arange(0, D)).to(tl.float32)
    row = y_ptr + r * ROW
    if INDEX:
        store_index_key(x, row, D)
    else:
        store_key(x, row, D)
    # Behind the last scale rows are zero, as the definition's are, so that equal keys are equal bytes.
    tail = FILLED + tl.arange(0, 16)
    tl.store(row + tail, tl.zeros((16,), tl.uint8), mask=tail < ROW)


def pack_keys(x: Tensor) -> Tensor:
    """See `reference.pack_keys`. Keys have a power of two columns."""
    D = x.shape[-1]
    return _pack(x, key_row_bytes(D), D + ROTATED + D // KEY_GROUP - 1, 2 * KEY_GROUP, index=False)


def pack_index_keys(x: Tensor) -> Tensor:
    """See `reference.pack_index_keys`. Index keys have a power of two columns."""
    D = x.shape[-1]
    return _pack(x, index_key_row_bytes(D), D // 2 + D // INDEX_GROUP, INDEX_GROUP, index=True)


def _pack(x: Tensor, size: int, filled: int, least: int, *, index: bool) -> Tensor:
    D = x.shape[-1]
    if D & (D - 1) or least > D or x.dtype != torch.bfloat16:
        raise ValueError(f"codes of {x.dtype} {tuple(x.shape)}: BF16, a power of two columns, {least} at least")
    y, x_rows = torch.empty(*x.shape[:-1], size, dtype=torch.uint8, device=x.device), rows(x)
    if len(x_rows):
        _pack_kernel[(len(x_rows),)](
            x_rows, y, x_rows.stride(0), ROW=size, D=D, FILLED=filled, INDEX=index, num_warps=1 if index else 2
        )
    return y


@early_kernel
def _unpack_kernel(
    keys_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.tensor,
    row_stride: tl.tensor,
    ROW: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    INDEX: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    wait_for_results()
    b = tl.program_id(1).to(tl.int64)
    row = b
    if rows_ptr is not None:
        row = tl.load(rows_ptr + b).to(tl.int64)
    n = (tl.program_id(0) * T + tl.arange(0, T)).to(tl.int64)
    keys = keys_ptr + row * row_stride
    if INDEX:
        even, odd = load_index_keys(keys, n, n < N, y_ptr.dtype.element_ty, T, D, ROW, PTX)
        x = tl.reshape(tl.join(even, odd), (T, D))
    else:
        low, high, exponent = fetch_keys(keys, tl.where(n < N, n, -1), D, ROW)
        x = decoded_keys(low, high, exponent, y_ptr.dtype.element_ty, T, D, PTX)
    tl.store(y_ptr + (b * N + n[:, None]) * D + tl.arange(0, D)[None, :], x, mask=(n < N)[:, None])


def unpacked_keys(keys: Tensor, width: int, which: Tensor | None) -> Tensor:
    """`reference.unpack_keys` of codes [.., N, ..], of the sequences `which` [B] if given: BF16 [B, N, width]."""
    return _unpack(keys, width, which, SLOTS, row_bytes(keys, torch.bfloat16, width), index=False)


def unpacked_index_keys(keys: Tensor, width: int, which: Tensor | None) -> Tensor:
    """`reference.unpack_index_keys`, as `unpacked_keys` does."""
    return _unpack(keys, width, which, 4 * SLOTS, index_row_bytes(keys, torch.bfloat16, width), index=True)


def _unpack(keys: Tensor, width: int, which: Tensor | None, slots: int, size: int, *, index: bool) -> Tensor:
    count, N = len(keys) if which is None else len(which), keys.shape[1]
    y = torch.empty(count, N, width, dtype=torch.bfloat16, device=keys.device)
    if y.numel():
        _unpack_kernel[(ceil_div(N, slots), count)](
            keys, which, y, N, keys.stride(0), ROW=size, D=width, T=slots, INDEX=index, PTX=TARGET.multiplies_bf16_pairs
        )
    return y
