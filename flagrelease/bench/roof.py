"""What the device could do at best: its copy bandwidth and matrix rate, and the bytes and products of a step."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from flagrelease.bench.chosen_experts import busiest
from flagrelease.device import Device
from flagrelease.engine.v4.model import Model


def seconds(device: Device, work: Callable[[], object], repeats: int = 5, inner: int = 1) -> float:
    """The median time of `work`, of `repeats` runs of `inner` calls each, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        device.synchronize()
        start = perf_counter()
        for _ in range(inner):
            work()
        device.synchronize()
        times.append((perf_counter() - start) / inner)
    return median(times)


def copy_bandwidth(device: Device, size: int) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes on the device."""
    a = torch.empty(size, dtype=torch.uint8, device=device.torch_device).random_()
    b = torch.empty_like(a)
    return 2 * size / seconds(device, lambda: b.copy_(a), inner=5)


def matrix_rate(device: Device, n: int) -> float:
    """Operations a second of an n x n x n product in BF16, by the vendor's library."""
    a, b = (torch.randn(n, n, device=device.torch_device).bfloat16() for _ in range(2))
    return 2 * n**3 / seconds(device, lambda: a @ b, inner=3)


def layer_bytes(model: Model) -> tuple[int, int]:
    """Bytes of the weights that every step reads, and of one routed expert in all layers.

    Of the embedding and the table of hash-routed layers a step reads single rows: they do not count.
    """
    seen: dict[int, int] = {}
    experts = 0
    for block in model.blocks:
        for part in (block.attn_hc, block.attn, block.ffn_hc, block.ffn.router.weight, block.ffn.router.bias):
            _collect(part, seen)
        for linear in (block.ffn.w13, block.ffn.w2):
            _collect(linear, seen)
        held = block.ffn.experts
        tensors = (held.w1, held.w3, held.w2, held.s1, held.s3, held.s2)
        experts += sum(_size(tensor[0]) for tensor in tensors if tensor is not None)
    _collect(model.final, seen)
    _collect(model.head, seen)
    return sum(seen.values()), experts


def cache_bytes(model: Model, context: int) -> int:
    """Bytes of caches that one row's token at `context` reads: listed keys, index keys, a compressor's memory."""
    config = model.config
    total = 0
    for block in model.blocks:
        keys, forms = config.sliding_window, model.numerics.key_forms(config, block.attn.ratio, context)
        if block.attn.indexer is not None:
            keys += min(config.index_topk, context // 4)
            total += context // 4 * forms.index_key_bytes
        elif block.attn.ratio:
            keys += context // block.attn.ratio
        total += keys * forms.key_bytes
    return total


def distinct_experts(model: Model, rows: int) -> float:
    """Experts of a layer that `rows` tokens take together, if every choice is equally likely.

    Over ranks those of the rank that has most of them: the others wait for it in every layer.
    """
    return busiest(model.config.n_routed_experts, model.groups.mp, model.config.num_experts_per_tok, rows)


def token_operations(model: Model, context: int) -> float:
    """Operations (two a product) of one token's matrix products and attention at a mean depth of `context` / 2.

    Over ranks those of one, which has its part of the heads and of the tokens' experts.
    """
    config, ranks = model.config, model.groups.mp
    dense = 0.0
    for block in model.blocks:
        attn, ffn = block.attn, block.ffn
        linears = [attn.latents, attn.wq_b, attn.wo_b, ffn.w13, ffn.w2]
        dense += sum(linear.weight.numel() for linear in linears) + attn.wo_a.numel() + ffn.router.weight.numel()
        dense += 0 if attn.side is None else attn.side.numel()
        dense += 0 if attn.indexer is None else attn.indexer.wq_b.weight.numel()
        dense += 3 * config.num_experts_per_tok * config.moe_intermediate_size * config.hidden_size / ranks
        keys = config.sliding_window
        if attn.indexer is not None:
            keys += min(config.index_topk, context // 8)
            dense += config.index_n_heads * config.index_head_dim * (context // 8)  # every rank has all index heads
        elif attn.ratio:
            keys += context // 2 // attn.ratio
        dense += 2 * keys * config.num_attention_heads * config.head_dim / ranks
    return 2.0 * dense


def _collect(part: object, seen: dict[int, int]) -> None:
    """Bytes of the tensors in a module, by address: views of joined weights count with the whole, once."""
    if isinstance(part, torch.Tensor):
        storage = part.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    elif hasattr(part, "__slots__"):
        for name in part.__slots__:
            _collect(getattr(part, name), seen)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
