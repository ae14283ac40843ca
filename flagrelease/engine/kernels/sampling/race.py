"""The choice of a token from logits in Triton: three launches that read the logits twice and write no row of them.

The first finds the largest logit of each part of a row, the second the first token to finish in each part, the third
the winner of a row. Legend: N rows, V vocabulary, P parts of a row.
"""
# ruff: noqa: N803  (dimensions of the legend)

import torch
import triton.language as tl
from torch import Tensor

from flagrelease.engine.kernels.early_launch import early_kernel, wait_for_results
from flagrelease.engine.kernels.interpreter import jit
from flagrelease.engine.kernels.layout import ceil_div, next_power_of_2, unit_columns

PART = 2048  # tokens of a program
NOBODY = tl.constexpr(2147483647)


@jit
def _finite_order(x: tl.tensor) -> tl.tensor:
    """A NaN is above all, as in torch's argmax: a broken model is not to choose a token that there is not."""
    return tl.where(x == x, x, float("inf"))


@early_kernel
def _largest_kernel(x_ptr: tl.tensor, y_ptr: tl.tensor, x_stride: tl.tensor, V: tl.tensor, PART: tl.constexpr) -> None:
    wait_for_results()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    t = part * PART + tl.arange(0, PART)
    x = tl.load(x_ptr + row * x_stride + t, mask=t < V, other=float("-inf")).to(tl.float32)
    tl.store(y_ptr + row * tl.num_programs(1) + part, tl.max(x, axis=0))


@jit
def _mix(bits: tl.tensor) -> tl.tensor:
    """MurmurHash3's 32-bit finalizer of uint32."""
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@jit
def _log_exponential(t: tl.tensor, first: tl.tensor, second: tl.tensor) -> tl.tensor:
    """Logarithms of `reference.sampling.exponential` for tokens t, within 2e-6.

    -log(1 - u) as a series for small u, where the winners are and 1 - u has lost most digits of u.
    """
    bits = _mix(_mix(t.to(tl.uint32) ^ first) + second)
    u = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    u = tl.minimum(u, 0.999999940395355224609375)  # 1 - 2^-24
    series = 1.0 + u * (0.5 + u * (1.0 / 3 + u * (0.25 + u * (0.2 + u * (1.0 / 6 + u * (1.0 / 7 + u * 0.125))))))
    return tl.log(tl.where(u < 0.125, u * series, -tl.log(1.0 - u)))


@early_kernel
def _finish_kernel(
    x_ptr: tl.tensor,
    largest_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    best_ptr: tl.tensor,
    token_ptr: tl.tensor,
    x_stride: tl.tensor,
    keys_stride: tl.tensor,
    keys_column: tl.tensor,
    V: tl.tensor,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    wait_for_results()
    t = part * PART + tl.arange(0, PART)
    p = tl.arange(0, PARTS)
    x = tl.load(x_ptr + row * x_stride + t, mask=t < V, other=float("-inf")).to(tl.float32)
    largest = tl.max(tl.load(largest_ptr + row * parts + p, mask=p < parts, other=float("-inf")), axis=0)
    temperature = tl.load(temperature_ptr + row)
    value = x - largest
    if temperature > 0:
        key = keys_ptr + row * keys_stride
        first = tl.load(key).to(tl.uint32, bitcast=True)
        second = tl.load(key + keys_column).to(tl.uint32, bitcast=True)
        value = value / temperature
        value = tl.where(value < tl.load(min_p_ptr + row), float("-inf"), value)
        value -= _log_exponential(t, first, second)
    value = tl.where(t < V, _finite_order(value), float("-inf"))
    best = tl.max(value, axis=0)
    tl.store(best_ptr + row * parts + part, best)
    tl.store(token_ptr + row * parts + part, tl.min(tl.where((value == best) & (t < V), t, NOBODY), axis=0))


@early_kernel
def _winner_kernel(
    best_ptr: tl.tensor, token_ptr: tl.tensor, y_ptr: tl.tensor, parts: tl.tensor, PARTS: tl.constexpr
) -> None:  # fmt: skip
    wait_for_results()
    row = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, PARTS)
    best = tl.load(best_ptr + row * parts + p, mask=p < parts, other=float("-inf"))
    token = tl.load(token_ptr + row * parts + p, mask=p < parts, other=NOBODY)
    tl.store(y_ptr + row, tl.min(tl.where(best == tl.max(best, axis=0), token, NOBODY), axis=0).to(tl.int64))


def race(logits: Tensor, temperature: Tensor, keys: Tensor, min_p: Tensor) -> Tensor:
    """See `reference.race`: the same token unless two finish within the last bits of their times."""
    N, V = logits.shape
    logits = unit_columns(logits)
    parts = ceil_div(V, PART)
    largest = torch.empty(N, parts, dtype=torch.float32, device=logits.device)
    best, token = torch.empty_like(largest), torch.empty(N, parts, dtype=torch.int32, device=logits.device)
    chosen = torch.empty(N, dtype=torch.int64, device=logits.device)
    block = next_power_of_2(parts)
    _largest_kernel[(N, parts)](logits, largest, logits.stride(0), V, PART=PART)
    _finish_kernel[(N, parts)](
        logits, largest, temperature, keys, min_p, best, token, logits.stride(0), keys.stride(0), keys.stride(1), V,
        PARTS=block, PART=PART,
    )  # fmt: skip
    _winner_kernel[(N,)](best, token, chosen, parts, PARTS=block, num_warps=1)
    return chosen
