"""The provider `auto` on an accelerator: Triton, with the vendor's library for dense products of one type."""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.linear import linear as triton_linear
from flagrelease.engine.kernels.triton_operators import TritonOperators


def linear(x: Tensor, w: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """See `reference.linear`: the vendor's product where all three types agree, Triton otherwise."""
    if x.dtype == w.dtype == out_dtype and out is None:
        return torch.nn.functional.linear(x, w)
    return triton_linear.linear(x, w, out_dtype, out)


def grouped_linear(x: Tensor, w: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `reference.grouped_linear`: the vendor's product where all three types agree, Triton otherwise."""
    if x.dtype == w.dtype == out_dtype:
        return torch.einsum("...gk,gnk->...gn", x, w)
    return triton_linear.grouped_linear(x, w, out_dtype)


class AutoOperators(TritonOperators):
    """Benchmarks of single operators decide what stands here (`benchmarks/kernels-*.md`)."""

    name = "auto"

    linear = staticmethod(linear)
    grouped_linear = staticmethod(grouped_linear)
