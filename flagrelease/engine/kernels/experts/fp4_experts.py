"""The routed experts of FP4 weights in Triton, from one token to thousands.

Legend: T tokens, K experts of each, P = T*K pairs (a token and one of its experts), E local experts, H hidden size,
MI expert width.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.experts.expert_plan import plan_chunks, plan_pairs
from flagrelease.engine.kernels.experts.fp4_products import coded_product, plain_product, spread_product
from flagrelease.engine.kernels.experts.split_columns import split_columns
from flagrelease.engine.kernels.experts.swiglu import clamped_swiglu
from flagrelease.engine.kernels.interpreter import cast, jit
from flagrelease.engine.kernels.layout import ceil_div
from flagrelease.engine.kernels.quantisation.act_quant import act_quant
from flagrelease.engine.kernels.targets import TARGET
from flagrelease.engine.kernels.weights import ExpertWeights

MOST_CODED = 64  # pairs of an expert; above it adding 32 columns at a time takes longer than decoding to BF16


@jit
def _work(
    item: tl.tensor,
    ids_ptr: tl.tensor,
    plan_ptr: tl.tensor,
    first: tl.tensor,
    E: tl.tensor,
    P: tl.tensor,
    PLAN: tl.constexpr,
) -> tl.tensor:
    """(local expert or -1 for another rank's, begin, end) of an item's pairs.

    An item is a pair, a place of `plan_chunks`, or an expert; item E is that of all other ranks' experts.
    """
    if PLAN == "pairs":
        e = tl.load(ids_ptr + item).to(tl.int32) - first
        return tl.where((e >= 0) & (e < E), e, -1), item, item + 1
    elif PLAN == "chunks":  # noqa: RET505 - Triton compiles what follows a return
        return tl.load(plan_ptr + 3 * item), tl.load(plan_ptr + 3 * item + 1), tl.load(plan_ptr + 3 * item + 2)
    else:
        end = tl.load(plan_ptr + tl.minimum(item + 1, E))
        return tl.where(item < E, item, -1), tl.load(plan_ptr + item), tl.where(item < E, end, P)


@jit
def _columns(pairs_ptr: tl.tensor, m: tl.tensor, end: tl.tensor, PLAN: tl.constexpr) -> tl.tensor:
    """The pairs at places m of the list, which begins with the first one."""
    if PLAN == "pairs":
        return tl.where(m < end, m, 0)
    else:  # noqa: RET505 - Triton compiles what follows a return
        return tl.load(pairs_ptr + m, mask=m < end, other=0)


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
    plan_ptr: tl.tensor,
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
    PLAN: tl.constexpr,
    SPREAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """h[pair] = swiglu(w1 x, w3 x) * routing weight, each product rounded to h's dtype first.

    A tile's rows are w1's and w3's in turn, so that the two numbers of an output meet in it.
    """
    wait_for_results()
    e, begin, end = _work(tl.program_id(1), ids_ptr, plan_ptr, first, E, P, PLAN)
    end, e = tl.where(e < 0, begin, end), tl.maximum(e, 0).to(tl.int64)
    row = tl.arange(0, BLOCK_N)
    n = tl.program_id(0) * (BLOCK_N // 2) + row // 2
    w, s = w_ptr + e * w_expert, s_ptr + e * s_expert
    w_at, s_at = n * w_row + row % 2 * w3_from_w1, n * s_row + row % 2 * s3_from_s1
    out = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    for m0 in range(begin, end, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        pair = _columns(pairs_ptr, m, end, PLAN)
        if SPREAD:
            acc = spread_product(w, w_at, s, s_at, x_ptr, xs_ptr, pair // slots, m < end, H, PTX, BLOCK_N, BLOCK_M)
        elif xs_ptr is not None:
            acc = coded_product(w, w_at, s, s_at, x_ptr, xs_ptr, pair // slots, m < end, H, PTX, BLOCK_N, BLOCK_M)
        else:
            acc = plain_product(w, w_at, s, s_at, x_ptr, pair // slots, m < end, H, PTX, BLOCK_N, BLOCK_M)
        gate, up = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N // 2, 2, BLOCK_M)), (0, 2, 1)))
        gate = cast(gate, h_ptr.dtype.element_ty).to(tl.float32)
        up = cast(up, h_ptr.dtype.element_ty).to(tl.float32)
        weight = tl.load(weights_ptr + pair, mask=m < end, other=0.0)
        h = cast(clamped_swiglu(gate, up, limit) * weight[None, :], h_ptr.dtype.element_ty)
        at = h_ptr + pair[None, :] * MI + out[:, None]
        tl.store(at, h, mask=(m < end)[None, :])


@early_kernel
def _down_kernel(
    h_ptr: tl.tensor,
    hs_ptr: tl.tensor,
    w_ptr: tl.tensor,
    s_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    plan_ptr: tl.tensor,
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
    PLAN: tl.constexpr,
    SPREAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """y[token, slot] = w2 h[pair], rounded to y's dtype; zeros for pairs of other ranks' experts."""
    wait_for_results()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    e, begin, end = _work(tl.program_id(1), ids_ptr, plan_ptr, first, E, P, PLAN)
    for m0 in range(begin, tl.where(e < 0, end, begin), BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        pair = _columns(pairs_ptr, m, end, PLAN)
        at = y_ptr + pair[None, :] // slots * y_token + pair[None, :] % slots * y_slot + n[:, None]
        none = tl.zeros((BLOCK_N, BLOCK_M), tl.float32).to(y_ptr.dtype.element_ty)
        tl.store(at, none, mask=(m < end)[None, :])
    end, e = tl.where(e < 0, begin, end), tl.maximum(e, 0).to(tl.int64)
    w, s = w_ptr + e * w_expert, s_ptr + e * s_expert
    for m0 in range(begin, end, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        pair = _columns(pairs_ptr, m, end, PLAN)
        if SPREAD:
            acc = spread_product(w, n * w_row, s, n * s_row, h_ptr, hs_ptr, pair, m < end, MI, PTX, BLOCK_N, BLOCK_M)
        elif hs_ptr is not None:
            acc = coded_product(w, n * w_row, s, n * s_row, h_ptr, hs_ptr, pair, m < end, MI, PTX, BLOCK_N, BLOCK_M)
        else:
            acc = plain_product(w, n * w_row, s, n * s_row, h_ptr, pair, m < end, MI, PTX, BLOCK_N, BLOCK_M)
        at = y_ptr + pair[None, :] // slots * y_token + pair[None, :] % slots * y_slot + n[:, None]
        tl.store(at, cast(acc, y_ptr.dtype.element_ty), mask=(m < end)[None, :])


def fp4_expert_outputs(
    x: Tensor, xq: Tensor | None, xs: Tensor | None, ids: Tensor, weights: Tensor, experts: ExpertWeights,
    limit: float, quantise: bool, y: Tensor, zeros: bool,
) -> None:  # fmt: skip
    """Every pair's output to y [T, K, H] (columns contiguous); `zeros`: to the pairs of other ranks' experts too.

    The experts are arranged, x and y BF16; xq and xs are `act_quant`'s if they are there already.
    """
    (E, MI), (T, slots), H, P = experts.w1.shape[:2], ids.shape, x.shape[1], ids.numel()
    coded = quantise and ceil_div(P, E) <= MOST_CODED
    gate_up, down = _tiles(T, ceil_div(P, E), coded)
    pairs, plan, items, kind = ids, ids, P, "pairs"  # one token's experts are different ones
    if T > 1 and gate_up["SPREAD"]:
        pairs, plan = plan_chunks(ids, experts.first, E, gate_up["BLOCK_M"])
        items, kind = len(plan), "chunks"
    elif T > 1:
        pairs, plan = plan_pairs(ids, experts.first, E)
        items, kind = E, "experts"
    ptx = TARGET.ptx
    w1, w3, w2, s1, s3, s2 = (
        _words(t) for t in (experts.w1, experts.w3, experts.w2, experts.s1, experts.s3, experts.s2)
    )
    h = y.new_empty(P, MI)
    if xq is None or not coded:
        xq, xs = _activation(x, quantise, coded)
    _gate_up_kernel[(ceil_div(2 * MI, gate_up["BLOCK_N"]), items)](
        xq, xs, w1, s1, _apart(w1, w3), _apart(s1, s3), ids, weights, pairs, plan, h, limit,
        experts.first, E, P, slots, MI, H, w1.stride(1), w1.stride(0), s1.stride(1), s1.stride(0), PTX=ptx, PLAN=kind,
        **gate_up,
    )  # fmt: skip
    hq, hs = _activation(h, quantise, coded)
    _down_kernel[(ceil_div(H, down["BLOCK_N"]), items + (zeros and kind == "experts"))](
        hq, hs, w2, s2, ids, pairs, plan, y, experts.first, E, P, slots, H, MI,
        w2.stride(1), w2.stride(0), s2.stride(1), s2.stride(0), y.stride(0), y.stride(1), PTX=ptx, PLAN=kind,
        **down,
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


def _tiles(T: int, mean: int, coded: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Tile sizes of gate and up, and of down, for T tokens and `mean` pairs of an expert; only speed depends on them.

    One BLOCK_M for both. Measured on an H200: 168 registers let three programs share a multiprocessor, and a fourth
    stage leaves too little cache for the scales.
    """
    if not TARGET.ptx:  # the interpreter, for which few large tiles are fast
        return _both(128, 2 if coded and mean <= 1 else 16, 4, 2, spread=coded and mean <= 1)
    if not coded:
        return _both(128, 128 if mean > 8 else 16, 8, 2)
    if mean <= 1:
        return _both(64 if T == 1 else 128, 2, 4, 3, 168, spread=True)
    if mean <= 8:
        return _both(128, 16, 4, 3, 168)
    return _both(64, 32, 4, 3)


def _both(*sizes: int, spread: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    return _tile(*sizes, spread=spread), _tile(*sizes, spread=spread)


def _tile(
    block_n: int, block_m: int, warps: int, stages: int, registers: int | None = None, *, spread: bool = False
) -> dict[str, int]:
    tile = {"BLOCK_N": block_n, "BLOCK_M": block_m, "SPREAD": spread, "num_warps": warps, "num_stages": stages}
    return tile if registers is None else tile | {"maxnreg": registers}
