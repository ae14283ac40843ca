"""The number formats of a DeepSeek-V4 checkpoint and its activations, in plain torch.

FP8 E4M3 with a power-of-two scale, FP4 E2M1 with a power-of-two scale per 32 values, E8M0 scale bytes. The fake_*
functions return the rounded value in the input's dtype and pass gradients straight through; the encode_* and decode_*
functions produce and read what a checkpoint stores.
"""

import torch
from torch import Tensor

FP8_MAX, FP4_MAX = 448.0, 6.0
FP8_AMAX_FLOOR = 1e-4  # act_quant's floor
FP4_AMAX_FLOOR = 6.0 * 2.0**-126  # fp4_act_quant's floor
BLOCK = 128  # FP8 weights: one scale per 128 x 128
FP4_GROUP = 32  # FP4 weights: one scale per 32 values of a row


def ceil_power_of_two(x: Tensor) -> Tensor:
    """2^ceil(log2(x)) of positive normal float32 values, from their bits."""
    bits = x.view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return (exponent << 23).view(torch.float32)


def round_e2m1(x: Tensor) -> Tensor:
    """Nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives for |x| <= 6, ties to the even mantissa."""
    magnitude = x.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.round(x / step) * step


def _fp8_values(groups: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 values and scales of float32 groups that lie along the last dimension."""
    amax = groups.abs().amax(-1, keepdim=True).clamp_min(FP8_AMAX_FLOOR)
    scale = ceil_power_of_two(amax * (1 / FP8_MAX))
    return (groups / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def _fp4_values(groups: Tensor) -> tuple[Tensor, Tensor]:
    """E2M1 values (as float32) and scales of float32 groups that lie along the last dimension."""
    amax = groups.abs().amax(-1, keepdim=True).clamp_min(FP4_AMAX_FLOOR)
    scale = ceil_power_of_two(amax * (1 / FP4_MAX))
    return round_e2m1((groups / scale).clamp(-FP4_MAX, FP4_MAX)), scale


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Exactly `rounded`, with the gradient of x."""
    return rounded.to(x.dtype) + (x - x.detach())


def fake_fp8(x: Tensor, group: int) -> Tensor:
    """act_quant in place: x [.., n * group] rounded to E4M3 with one scale per `group` values."""
    values, scale = _fp8_values(x.detach().float().unflatten(-1, (-1, group)))
    return _straight_through(x, (values.float() * scale).flatten(-2))


def fake_fp4(x: Tensor) -> Tensor:
    """fp4_act_quant in place: x [.., n * 32] rounded to E2M1 with one scale per 32 values."""
    values, scale = _fp4_values(x.detach().float().unflatten(-1, (-1, FP4_GROUP)))
    return _straight_through(x, (values * scale).flatten(-2))


def _to_blocks(weight: Tensor) -> Tensor:
    """[o, i] -> [o/128, i/128, 128 * 128]."""
    rows, columns = weight.shape[0] // BLOCK, weight.shape[1] // BLOCK
    return weight.reshape(rows, BLOCK, columns, BLOCK).transpose(1, 2).flatten(-2)


def _from_blocks(blocks: Tensor) -> Tensor:
    """The inverse of `_to_blocks`."""
    rows, columns = blocks.shape[:2]
    return blocks.unflatten(-1, (BLOCK, BLOCK)).transpose(1, 2).reshape(rows * BLOCK, columns * BLOCK)


def round_fp8_weights(weights: list[Tensor]) -> list[Tensor]:
    """Float32 weights [o, i], each rounded to E4M3 with one scale per 128 x 128 block."""
    blocks = [_to_blocks(weight) for weight in weights]
    values, scale = _fp8_values(torch.cat([block.flatten(0, 1) for block in blocks]))
    parts = (values.float() * scale).split([block.shape[0] * block.shape[1] for block in blocks])
    return [_from_blocks(part.view(block.shape)) for part, block in zip(parts, blocks, strict=True)]


def round_fp4_weights(weights: list[Tensor]) -> list[Tensor]:
    """Float32 weights [.., n * 32], each rounded to E2M1 with one scale per 32 values."""
    values, scale = _fp4_values(torch.cat([weight.reshape(-1, FP4_GROUP) for weight in weights]))
    parts = (values * scale).split([weight.numel() // FP4_GROUP for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def encode_e8m0(scale: Tensor) -> Tensor:
    """Powers of two (float32) -> F8_E8M0 of the same shape."""
    return (scale.view(torch.int32) >> 23).to(torch.uint8).view(torch.float8_e8m0fnu)


def decode_e8m0(scale: Tensor) -> Tensor:
    """F8_E8M0 -> float32, 2^(byte - 127); byte 255 is refused."""
    exponent = scale.view(torch.uint8)
    if bool((exponent == 255).any()):
        raise ValueError("an E8M0 scale is NaN")
    return torch.exp2(exponent.float() - 127)


def encode_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[o, i] -> F8_E4M3 [o, i] and F8_E8M0 [o/128, i/128]."""
    values, scale = _fp8_values(_to_blocks(weight.float()))
    return _from_blocks(values.view(torch.uint8)).view(torch.float8_e4m3fn), encode_e8m0(scale.squeeze(-1))


def decode_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """F8_E4M3 [o, i] and F8_E8M0 [o/128, i/128] -> float32 [o, i]."""
    return _from_blocks(_to_blocks(weight.float()) * decode_e8m0(scale).unsqueeze(-1))


def encode_fp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[o, i] -> I8 [o, i/2], two codes a byte with the even index in the low nibble, and F8_E8M0 [o, i/32]."""
    values, scale = _fp4_values(weight.float().unflatten(-1, (-1, FP4_GROUP)))
    magnitude = values.abs().flatten(-2)
    codes = torch.bucketize(magnitude, torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]))
    codes = codes + 8 * ((values.flatten(-2) < 0) & (magnitude > 0))
    packed = codes[..., 0::2] + 16 * codes[..., 1::2]
    return packed.to(torch.uint8).view(torch.int8), encode_e8m0(scale.squeeze(-1))


def decode_fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """I8 [o, i/2] and F8_E8M0 [o, i/32] -> float32 [o, i]."""
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    table = torch.cat([table, -table])
    codes = packed.view(torch.uint8).long()
    values = table[torch.stack([codes & 15, codes >> 4], -1).flatten(-2)]
    return (values.unflatten(-1, (-1, FP4_GROUP)) * decode_e8m0(scale).unsqueeze(-1)).flatten(-2)
