"""Other people's kernels as operators of ours: DeepSeek's kernel.py, DeepSeek's tile_kernels, FlagGems.

A `Peer` takes the arguments of an `OperatorCase`. What a model does once, with its weights, is done in `prepare`; what
it does in every call is timed. Nothing of theirs is kept here: kernel.py is the user's copy, the rest are packages.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagrelease.engine.kernels.weights import ExpertWeights

E8M0, FP4_PAIR = torch.float8_e8m0fnu, torch.float4_e2m1fn_x2
KERNEL_PY, TILE_KERNELS, FLAG_GEMS = "kernel.py", "tile_kernels", "FlagGems"

Arguments = tuple[Any, ...]


def as_they_are(*arguments: Any) -> Arguments:
    """For a peer that takes the operator's arguments."""
    return arguments


@dataclass(frozen=True, slots=True)
class Peer:
    """One implementation of an operator.

    Attributes:
        owner: whose; the column of the table.
        name: the function that is called.
        call: takes what `prepare` gave; the result in the operator's order.
        prepare: not timed.
        computes: what it does beside or short of the operator, in words.
        whole: False where it does only a part of the operator's work: no time to hold ours against.
        compared: False where the result is not the operator's.
    """

    owner: str
    name: str
    call: Callable[..., Any]
    prepare: Callable[..., Arguments] = as_they_are
    computes: str = ""
    whole: bool = True
    compared: bool = True

    @property
    def label(self) -> str:
        """`owner: function`."""
        return f"{self.owner}: {self.name}"


Peers = dict[str, list[Peer]]


def kernel_py_peers(path: Path) -> Peers:
    """DeepSeek's inference/kernel.py, by operator of ours."""
    k = _module(path)

    def fp8_gemm(*arguments: Any) -> Tensor:
        with _bf16_results():
            return k.fp8_gemm(*arguments, E8M0)  # type: ignore[no-any-return]

    def fp4_gemm(*arguments: Any) -> Tensor:
        with _bf16_results():
            return k.fp4_gemm(*arguments, E8M0)  # type: ignore[no-any-return]

    def experts(*products: Arguments) -> None:
        for product in products:
            fp4_gemm(*product)

    def split_sinkhorn(mixes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return k.hc_split_sinkhorn(mixes[None], *rest)  # type: ignore[no-any-return]

    in_place = "writes a second tensor and copies it back"
    products = "its three products for each chosen expert alone: no routing, quantisation, SwiGLU, weights or sum"
    return {
        "act_quant": [Peer(KERNEL_PY, "act_quant", lambda x: k.act_quant(x, 128, "ue8m0", E8M0))],
        "act_quant_roundtrip": [
            Peer(KERNEL_PY, "act_quant", lambda x, n: k.act_quant(x, n, "ue8m0", E8M0, True), computes=in_place)
        ],
        "fp4_act_quant_roundtrip": [
            Peer(KERNEL_PY, "fp4_act_quant", lambda x: k.fp4_act_quant(x, 32, True), computes=in_place)
        ],
        "fp8_linear": [Peer(KERNEL_PY, "fp8_gemm", fp8_gemm, lambda x, xs, w, ws: (x, xs.to(E8M0), w, ws))],
        "fp4_linear": [
            Peer(KERNEL_PY, "fp4_gemm", fp4_gemm, lambda x, xs, w, ws: (x, xs.to(E8M0), w.view(FP4_PAIR), ws))
        ],
        "sparse_attention": [Peer(KERNEL_PY, "sparse_attn", k.sparse_attn)],
        "hc_split_sinkhorn": [Peer(KERNEL_PY, "hc_split_sinkhorn", split_sinkhorn)],
        "moe_experts": [
            Peer(KERNEL_PY, "fp4_gemm", experts, _expert_products, computes=products, whole=False, compared=False)
        ],
    }  # fmt: skip


def tile_kernels_peers() -> Peers:
    """DeepSeek's package tile_kernels 2, by operator of ours. Its kernels launch early, as ours do."""
    mhc, quant, moe, config = (import_module(f"tile_kernels.{name}") for name in ("mhc", "quant", "moe", "config"))
    rotary = _function("tile_kernels.transform", "apply_rotary")
    config.set_pdl(True)

    def pre(products: Tensor, squares: Tensor, x: Tensor, scale: Tensor, base: Tensor, iters: int, *eps: float) -> Any:
        after, comb = (x.new_empty(len(x), n, dtype=torch.float32) for n in (x.shape[1], x.shape[1] ** 2))
        y = torch.empty_like(x[:, 0])
        mhc.mhc_pre_big_fuse_fwd(
            products, squares, scale, base, x, after, comb, y, eps[1], eps[0], eps[0], 2.0, iters, n_splits=1
        )
        return y, after, comb

    def with_products(x: Tensor, fn: Tensor, *rest: Any) -> Arguments:
        flat = x.flatten(1).float()
        return (flat @ fn.T)[None], flat.square().sum(-1)[None], x, *rest

    def split_sinkhorn(mixes: Tensor, scale: Tensor, base: Tensor, n: int, iters: int, eps: float) -> Any:
        before, after, comb = (mixes.new_empty(len(mixes), width) for width in (n, n, n * n))
        mhc.mhc_pre_split_mixes_fwd(mixes, scale, base, before, after, comb, 2.0, eps)
        comb, doubly = comb.view(-1, n, n), mixes.new_empty(len(mixes), n, n)
        mhc.mhc_sinkhorn_fwd(comb, doubly, iters, eps)
        return before, after, doubly

    def gate(logits: Tensor, bias: Tensor, k: int, scale: float) -> Any:
        return moe.moe_topk_gate_forward(logits, k, False, 0, scale, 0, bias=bias)

    def rotate(x: Tensor, table: Tensor) -> Tensor:
        rotary(x, table, interleaved=True)
        return x

    def round_trip(x: Tensor, fmt: str, group: int) -> Tensor:
        quant.per_token_cast_and_cast_back(x.flatten(1), fmt, group, round_sf=True)
        return x

    joined: Callable[..., Arguments] = lambda gate, up, limit: (torch.cat((gate, up), -1), limit)  # noqa: E731
    alone = "after the product with the mixing weights and the sum of squares, which the package has not"
    return {
        "act_quant": [
            Peer(TILE_KERNELS, "per_token_cast", lambda x: quant.per_token_cast(x, "e4m3", 128, round_sf=True))
        ],
        "act_quant_roundtrip": [
            Peer(TILE_KERNELS, "per_token_cast_and_cast_back", round_trip, lambda x, group: (x, "e4m3", group))
        ],
        "fp4_act_quant_roundtrip": [
            Peer(TILE_KERNELS, "per_token_cast_and_cast_back", round_trip, lambda x, *_: (x, "e2m1", 32))
        ],
        "rms_norm": [Peer(TILE_KERNELS, "norm_forward", lambda x, w, eps: quant.norm_forward(x, w, eps)[0])],
        "apply_rope": [
            Peer(TILE_KERNELS, "apply_rotary", rotate, lambda x, cos, sin: (x, torch.cat((cos[:, 0], sin[:, 0]), -1)),
                 "in place")
        ],
        "hc_pre": [Peer(TILE_KERNELS, "mhc_pre_big_fuse_fwd", pre, with_products, alone, whole=False)],
        "hc_split_sinkhorn": [Peer(TILE_KERNELS, "mhc_pre_split_mixes_fwd, mhc_sinkhorn_fwd", split_sinkhorn)],
        "hc_post": [
            Peer(TILE_KERNELS, "mhc_post_fwd", mhc.mhc_post_fwd,
                 lambda o, x, after, comb: (o[None], x[None], after[None, ..., None], comb[None]))
        ],
        "route": [
            Peer(TILE_KERNELS, "moe_topk_gate_forward", gate, lambda scores, *rest: (_logits(scores), *rest),
                 "takes logits: softplus and square root are its own")
        ],
        "swiglu": [
            Peer(TILE_KERNELS, "swiglu_forward",
                 lambda both, limit: quant.swiglu_forward(both, "bf16", clamp_value=limit), joined)
        ],
        "swiglu_quant": [
            Peer(TILE_KERNELS, "swiglu_forward_and_per_token_cast",
                 lambda both, limit: quant.swiglu_forward_and_per_token_cast(
                     both, "e4m3", 128, round_sf=True, clamp_value=limit), joined)
        ],
    }  # fmt: skip


def flag_gems_peers() -> Peers:
    """FlagGems' kernels, by operator of ours; of an operator it has twice both are tried."""
    ops, fused = "flag_gems.ops", "flag_gems.fused"
    fp8, hc_pre = _function(f"{ops}.fp8_matmul"), _function(f"{fused}.mhc.mhc_pre")
    block_fp8 = _function(f"{ops}.w8a8_block_fp8_matmul")
    group_quant, quant = (
        _function(f"{ops}.per_token_group_quant_fp8"),
        _function(f"{ops}.act_quant", "act_quant_triton"),
    )
    hadamard, norm, topk = (_function(f"{ops}.{name}") for name in ("hadamard_transform", "rms_norm", "topk"))
    rope = _function(f"{fused}.rotary_embedding", "apply_rotary_pos_emb")
    bucket_topk = _function(f"{fused}.DSA.bin_topk", "bucket_sort_topk")

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Any:
        return rope(q, k, cos, sin, positions, True)[0]

    def pre(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float) -> Any:
        with torch.enable_grad():  # without, 5.0.2 looks the weights up in a table that compares tensors, and fails
            after, comb, y = hc_pre(x, fn, scale, base, norm_eps, eps, eps, 2.0, iters)
        return y, after, comb

    wide_scales: Callable[..., Arguments] = lambda x, xs, w, ws: (x, xs, w, ws.float())  # noqa: E731
    return {
        "act_quant": [
            Peer(FLAG_GEMS, "act_quant_triton", lambda x: quant(x.float(), 128, "ue8m0"), computes="of FP32 values"),
            Peer(FLAG_GEMS, "per_token_group_quant_fp8", lambda x: group_quant(x, 128, 1e-4, scale_ue8m0=True)),
        ],
        "fp8_linear": [
            Peer(FLAG_GEMS, "fp8_matmul", fp8, wide_scales),
            Peer(FLAG_GEMS, "w8a8_block_fp8_matmul",
                 lambda x, xs, w, ws: block_fp8(x, w, xs, ws, [128, 128], torch.bfloat16), wide_scales),
        ],
        "rms_norm": [Peer(FLAG_GEMS, "rms_norm", lambda x, w, eps: norm(x, [x.shape[-1]], w, eps))],
        "apply_rope": [
            Peer(FLAG_GEMS, "apply_rotary_pos_emb", rotate,
                 lambda x, cos, sin: (x, x[:, :1], cos[:, 0], sin[:, 0], torch.arange(len(x), device=x.device)),
                 computes="one key head more, and looks positions up")
        ],
        "hadamard": [
            Peer(FLAG_GEMS, "hadamard_transform",
                 lambda x: hadamard(x.float(), x.shape[-1] ** -0.5).to(x.dtype), computes="of FP32 values, and back")
        ],
        "hc_pre": [Peer(FLAG_GEMS, "mhc_pre", pre, computes="mixes in BF16, its weights rounded in every call")],
        "hc_split_sinkhorn": [
            Peer(FLAG_GEMS, "hc_split_sinkhorn", _function(f"{fused}.mhc.hc_split_sinkhorn"))
        ],
        "hc_post": [
            Peer(FLAG_GEMS, "mhc_post", _function(f"{fused}.mhc.mhc_post"),
                 lambda o, x, after, comb: (o, x, after[..., None], comb))
        ],
        "sparse_attention": [
            Peer(FLAG_GEMS, "sparse_attn_triton", _function(f"{fused}.sparse_attention", "sparse_attn_triton"))
        ],
        "topk_visible": [
            Peer(FLAG_GEMS, "topk", lambda x, visible, k: topk(x, k)[1], computes="every entry, in order of score"),
            Peer(FLAG_GEMS, "bucket_sort_topk",
                 lambda x, starts, ends, k: bucket_topk(x, starts, ends, k),
                 lambda x, visible, k: (x[0], torch.zeros_like(visible[0]).int(), visible[0].int(), k),
                 computes="in no order"),
        ],
    }  # fmt: skip


def _expert_products(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights, limit: float, quantise: bool
) -> Arguments:
    """w1, w3 and w2 of each expert that a token chose, with as many rows as chose it."""
    scaled = ((experts.w1, experts.s1), (experts.w3, experts.s3), (experts.w2, experts.s2))
    inter = experts.w1.shape[1]
    products: list[Arguments] = []
    for expert, rows in zip(*(part.tolist() for part in torch.unique(ids, return_counts=True)), strict=True):
        for w, ws in scaled:
            assert ws is not None
            columns = inter if w is experts.w2 else x.shape[-1]
            a = torch.randn(rows, columns, device=x.device).to(torch.float8_e4m3fn)
            scales = torch.ones(rows, columns // 128, device=x.device).to(E8M0)
            products.append((a, scales, w[expert].view(FP4_PAIR), ws[expert]))
    return tuple(products)


def _logits(scores: Tensor) -> Tensor:
    """What the square root of the softplus of is `scores`; finite, as the peer asks, where they are 0."""
    squares = scores.double().square().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.log(torch.expm1(squares)).float()


@contextmanager
def _bf16_results() -> Iterator[None]:
    """kernel.py's products are in torch's default type, which the model sets to BF16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _module(path: Path) -> Any:
    name = "deepseek_kernel_py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} is no Python file"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # TileLang reads its functions' source
    spec.loader.exec_module(module)
    return module


def _function(module: str, name: str | None = None) -> Any:
    """A function, of the module's name if none is given."""
    return getattr(import_module(module), name or module.rpartition(".")[2])
