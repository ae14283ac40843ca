"""The routed experts of FP4 weights in Triton, from one token to thousands.

Legend: T tokens, K experts of each, P = T*K pairs (a token and one of its experts), E local experts, H hidden size,
MI expert width.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.experts.expert_plan import plan_pairs
from flagrelease.engine.kernels.experts.fp4_products import coded_product, diagonal_product, plain_product
from flagrelease.engine.kernels.experts.split_columns import split_columns
from flagrelease.engine.kernels.experts.swiglu import clamped_swiglu
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2
from flagrelease.engine.kernels.quantisation.act_quant import act_quant
from flagrelease.engine.kernels.quantisation.fp4_codes import compiles_ptx
from flagrelease.engine.kernels.weights import ExpertWeights

MOST_CODED = 64  # pairs of an expert; above it adding 32 columns at a time takes longer than decoding to BF16
FEW_PAIRS = 32  # up to here every program finds the pairs of its expert by itself (96 are planned 3 % faster)


@jit
def _same_expert(ids_ptr: tl.tensor, p: tl.tensor, P: tl.tensor, BLOCK_P: tl.constexpr) -> tl.tensor:
    """Which pairs have the expert of pair p, and how many come before p."""
    i = tl.arange(0, BLOCK_P)
    ids = tl.load(ids_ptr + i, mask=i < P, other=-1).to(tl.int32)
    same = ((ids == tl.load(ids_ptr + p).to(tl.int32)) & (i < P)).to(tl.int32)
    return same, tl.sum(same * (i < p).to(tl.int32), axis=0)


@jit
def _columns(pairs_ptr: tl.tensor, same: tl.tensor, m: tl.tensor, end: tl.tensor, BLOCK_P: tl.constexpr) -> tl.tensor:
    """The pairs in columns m of a tile: read from the plan, or the m-th that are in `same`."""
    if BLOCK_P == 0:
        return tl.load(pairs_ptr + m, mask=m < end, other=0)
    else:  # noqa: RET505 - Triton compiles what follows a return
        i = tl.arange(0, BLOCK_P)
        place = tl.where(same > 0, tl.cumsum(same, axis=0) - 1, -1)
        return tl.sum(tl.where(place[:, None] == m[None, :], i[:, None], 0), axis=0)


@early_kernel
def _gate_up_kernel(
    x_ptr: tl.tensor,
    xs_ptr: tl.tensor,
    w_ptr: tl.tensor,
    s_ptr: tl.tensor,
    w3_from_w1: tl.tensor,
    s3_from_s1: tl.tensor,
    ids_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    start_ptr: tl.tensor,
    h_ptr: tl.tensor,
    limit: tl.tensor,
    first: tl.tensor,
    E: tl.tensor,
    P: tl.tensor,
    slots: tl.tensor,
    MI: tl.tensor,
    H: tl.tensor,
    w_row: tl.tensor,
    w_expert: tl.tensor,
    s_row: tl.tensor,
    s_expert: tl.tensor,
    PTX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """h[pair] = swiglu(w1 x, w3 x) * routing weight, each product rounded to h's dtype first.

    A tile's rows are w1's and w3's in turn, so that the two numbers of an output meet in it.
    """
    wait_for_results()
    item = tl.program_id(1)
    same = item
    if BLOCK_P == 0:
        e = item.to(tl.int64)
        begin, end = tl.load(start_ptr + e), tl.load(start_ptr + e + 1)
    else:
        e = (tl.load(ids_ptr + item).to(tl.int32) - first).to(tl.int64)
        same, before = _same_expert(ids_ptr, item, P, BLOCK_P)
        begin, end = 0, tl.where((before == 0) & (e >= 0) & (e < E), tl.sum(same, axis=0), 0)
        e = tl.where((e >= 0) & (e < E), e, 0)
    row = tl.arange(0, BLOCK_N)
    n = tl.program_id(0) * (BLOCK_N // 2) + row // 2
    w, s = w_ptr + e * w_expert, s_ptr + e * s_expert
    w_at, s_at = n * w_row + row % 2 * w3_from_w1, n * s_row + row % 2 * s3_from_s1
    out = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    for m0 in range(begin, end, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        pair = _columns(pairs_ptr, same, m, end, BLOCK_P)
        if BLOCK_M == 2:
            acc = diagonal_product(w, w_at, s, s_at, n < MI, x_ptr, xs_ptr, pair // slots, m < end, H, PTX, BLOCK_N)
        elif xs_ptr is not None:
            acc = coded_product(
                w, w_at, s, s_at, n < MI, x_ptr, xs_ptr, pair // slots, m < end, H, PTX, BLOCK_N, BLOCK_M
            )
        else:
            acc = plain_product(w, w_at, s, s_at, n < MI, x_ptr, pair // slots, m < end, H, PTX, BLOCK_N, BLOCK_M)
        gate, up = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N // 2, 2, BLOCK_M)), (0, 2, 1)))
        gate = cast(gate, h_ptr.dtype.element_ty).to(tl.float32)
        up = cast(up, h_ptr.dtype.element_ty).to(tl.float32)
        weight = tl.load(weights_ptr + pair, mask=m < end, other=0.0)
        h = cast(clamped_swiglu(gate, up, limit) * weight[None, :], h_ptr.dtype.element_ty)
        at = h_ptr + pair[None, :] * MI + out[:, None]
        tl.store(at, h, mask=(out < MI)[:, None] & (m < end)[None, :])


@early_kernel
def _down_kernel(
    h_ptr: tl.tensor,
    hs_ptr: tl.tensor,
    w_ptr: tl.tensor,
    s_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    start_ptr: tl.tensor,
    y_ptr: tl.tensor,
    first: tl.tensor,
    E: tl.tensor,
    P: tl.tensor,
    slots: tl.tensor,
    H: tl.tensor,
    MI: tl.tensor,
    w_row: tl.tensor,
    w_expert: tl.tensor,
    s_row: tl.tensor,
    s_expert: tl.tensor,
    y_token: tl.tensor,
    y_slot: tl.tensor,
    PTX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """y[token, slot] = w2 h[pair], rounded to y's dtype.

    Zeros for pairs of other ranks' experts: by the pairs' own items without a plan, by one more item with one.
    """
    wait_for_results()
    item = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    same = item
    none = tl.zeros((BLOCK_N,), tl.float32).to(y_ptr.dtype.element_ty)
    if BLOCK_P == 0:
        e = tl.minimum(item, E - 1).to(tl.int64)
        begin, end = tl.load(start_ptr + e), tl.load(start_ptr + e + 1)
        if item == E:
            end = begin
            for p in range(P):
                local = tl.load(ids_ptr + p).to(tl.int32) - first
                if (local < 0) | (local >= E):
                    tl.store(y_ptr + p // slots * y_token + p % slots * y_slot + n, none, mask=n < H)
    else:
        e = (tl.load(ids_ptr + item).to(tl.int32) - first).to(tl.int64)
        same, before = _same_expert(ids_ptr, item, P, BLOCK_P)
        begin, end = 0, tl.where((before == 0) & (e >= 0) & (e < E), tl.sum(same, axis=0), 0)
        if (e < 0) | (e >= E):
            tl.store(y_ptr + item // slots * y_token + item % slots * y_slot + n, none, mask=n < H)
        e = tl.where((e >= 0) & (e < E), e, 0)
    w, s = w_ptr + e * w_expert, s_ptr + e * s_expert
    for m0 in range(begin, end, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        pair = _columns(pairs_ptr, same, m, end, BLOCK_P)
        if BLOCK_M == 2:
            acc = diagonal_product(w, n * w_row, s, n * s_row, n < H, h_ptr, hs_ptr, pair, m < end, MI, PTX, BLOCK_N)
        elif hs_ptr is not None:
            acc = coded_product(
                w, n * w_row, s, n * s_row, n < H, h_ptr, hs_ptr, pair, m < end, MI, PTX, BLOCK_N, BLOCK_M
            )
        else:
            acc = plain_product(w, n * w_row, s, n * s_row, n < H, h_ptr, pair, m < end, MI, PTX, BLOCK_N, BLOCK_M)
        at = y_ptr + pair[None, :] // slots * y_token + pair[None, :] % slots * y_slot + n[:, None]
        tl.store(at, cast(acc, y_ptr.dtype.element_ty), mask=(n < H)[:, None] & (m < end)[None, :])


def fp4_expert_outputs(
    x: Tensor, xq: Tensor | None, xs: Tensor | None, ids: Tensor, weights: Tensor, experts: ExpertWeights,
    limit: float, quantise: bool, y: Tensor, zeros: bool,
) -> None:  # fmt: skip
    """Every pair's output to y [T, K, H] (columns contiguous); `zeros`: to the pairs of other ranks' experts too.

    The experts are arranged, x and y BF16; xq and xs are `act_quant`'s if they are there already.
    """
    (E, MI), slots, H, P = experts.w1.shape[:2], ids.shape[1], x.shape[1], ids.numel()
    few = P <= FEW_PAIRS
    pairs, start = (ids, ids) if few else plan_pairs(ids, experts.first, E)
    coded = quantise and ceil_div(P, E) <= MOST_CODED
    constants = {"PTX": compiles_ptx(), "BLOCK_P": max(16, next_power_of_2(P)) if few else 0}
    gate_up, down = (constants | tile for tile in _tiles(ceil_div(P, E), few, coded))
    items = P if few else E
    w1, w3, w2, s1, s3, s2 = (
        _words(t) for t in (experts.w1, experts.w3, experts.w2, experts.s1, experts.s3, experts.s2)
    )
    h = y.new_empty(P, MI)
    if xq is None or not coded:
        xq, xs = _activation(x, quantise, coded)
    _gate_up_kernel[(ceil_div(2 * MI, gate_up["BLOCK_N"]), items)](
        xq, xs, w1, s1, _apart(w1, w3), _apart(s1, s3), ids, weights, pairs, start, h, limit,
        experts.first, E, P, slots, MI, H, w1.stride(1), w1.stride(0), s1.stride(1), s1.stride(0), **gate_up,
    )  # fmt: skip
    hq, hs = _activation(h, quantise, coded)
    _down_kernel[(ceil_div(H, down["BLOCK_N"]), items + (zeros and not few))](
        hq, hs, w2, s2, ids, pairs, start, y, experts.first, E, P, slots, H, MI,
        w2.stride(1), w2.stride(0), s2.stride(1), s2.stride(0), y.stride(0), y.stride(1), **down,
    )  # fmt: skip


def _activation(x: Tensor, quantise: bool, coded: bool) -> tuple[Tensor, Tensor | None]:
    """As the product takes it: codes and scales, or BF16, rounded or not."""
    if coded:
        return act_quant(x)
    return split_columns(x, quantise), None


def _words(codes: Tensor | None) -> Tensor:
    """Codes, or E8M0 scales, four bytes or eight codes at a time."""
    assert codes is not None, "FP4 weights have scales"
    return codes.view(torch.int32)


def _apart(a: Tensor, b: Tensor) -> int:
    """Elements from `a` to `b`: a number of 32 bits where both lie in one tensor, as the loader puts them."""
    return (b.data_ptr() - a.data_ptr()) // a.element_size()


def _tiles(mean: int, few: bool, coded: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Tile sizes of gate and up, and of down, for the mean number of pairs an expert gets; only speed depends on them.

    Measured on an H200, for a few pairs in a whole step. 168 registers: three programs a multiprocessor; 128: four.
    """
    if not compiles_ptx():
        return _both(32, 2 if coded and mean <= 1 else 16, 4, 2)
    if not coded:
        return _both(128, 128 if mean > 8 else 16, 8, 2)
    if few:
        return _tile(64, 2 if mean <= 1 else 16, 4, 3, 168), _tile(64, 2 if mean <= 1 else 16, 4, 4, 128)
    if mean <= 8:
        return _both(128, 2 if mean <= 1 else 16, 4, 3, 168)
    return _both(64, 32, 4, 3)


def _both(*sizes: int) -> tuple[dict[str, int], dict[str, int]]:
    return _tile(*sizes), _tile(*sizes)


def _tile(block_n: int, block_m: int, warps: int, stages: int, registers: int | None = None) -> dict[str, int]:
    tile = {"BLOCK_N": block_n, "BLOCK_M": block_m, "num_warps": warps, "num_stages": stages}
    return tile if registers is None else tile | {"maxnreg": registers}
