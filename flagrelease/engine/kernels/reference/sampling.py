"""The choice of a token from logits, as a race between all tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def race(logits: Tensor, temperature: Tensor, keys: Tensor, min_p: Tensor) -> Tensor:
    """A token for each row, int64 [N].

    The Gumbel-max trick: token t finishes after E_t / p_t, where p = softmax(logits / temperature) and the E are
    independent exponential variates that the keys decide, so it wins with probability p_t. Two sets of logits of nearly
    the same probabilities choose the same token mostly if they share the keys: speculation rests on that.

    Args:
        logits: [N, V].
        temperature: FP32 [N]; 0: the most likely token, the first one of equals.
        keys: int32 [N, 2].
        min_p: FP32 [N], natural logarithms: tokens whose share of the most likely one's probability is less do not run.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    drawn = temperature > 0
    scaled = (logits - logits.amax(-1, keepdim=True)) / torch.where(drawn, temperature, 1)[:, None]
    running = scaled.masked_fill(scaled < min_p[:, None], -torch.inf)  # the most likely token is at 0
    return torch.where(drawn[:, None], running - exponential(keys, logits.shape[-1]).log(), scaled).argmax(-1)


def exponential(keys: Tensor, size: int) -> Tensor:
    """Exponential variates [N, size] from int32 keys [N, 2], FP32: on every device the same but for a last bit.

    31 bits of a hash u are a uniform variate in (0, 1), as fine near 0 as FP32 is, where the winners are. It is never
    1: E would be infinite, and a token that is the only one allowed would not finish.
    """
    bits = torch.arange(size, dtype=torch.int32, device=keys.device)[None] ^ keys[:, :1]
    bits = _mix(_mix(bits) + keys[:, 1:])
    u = ((bits & 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    return -torch.log1p(-u.clamp(max=1 - 2.0**-24))


def _mix(bits: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finalizer; int32 products wrap, and shifts are made logical by a mask."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return bits ^ ((bits >> 16) & 0xFFFF)
