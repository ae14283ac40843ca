"""Cached keys as the bytes that native numerics round them to, half and a quarter of BF16.

What is read back is `act_quant_roundtrip` or `fp4_act_quant_roundtrip` of what was stored, to the bit, in BF16. Scales
are powers of two, kept as their biased exponents. A group with a NaN or an infinity has 255 there; none of its numbers
need be what they were, and those that are not zero are not finite.

    a key      HD columns: bytes of E4M3 codes of all but the last 64, then the low bytes of those, which are BF16;
               their 64 high bytes; HD / 64 - 1 scales, one for each 64 codes
    index key  ID columns: ID / 2 bytes of two E2M1 codes, the even column in the low nibble; ID / 32 scales

Both are filled up to a multiple of 16 bytes, so that kernels load 16 at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flagrelease.engine.kernels.reference.e4m3 import numbers
from flagrelease.engine.kernels.reference.quantisation import act_quant, e2m1_values, fp4_act_quant
from flagrelease.model.v4.cache_size import INDEX_GROUP, KEY_GROUP, ROTATED, index_key_row_bytes, key_row_bytes


def pack_keys(x: Tensor) -> Tensor:
    """Round keys and store them as codes: BF16 [.., HD], 64 divides HD, to uint8 [.., key_row_bytes(HD)]."""
    width = x.shape[-1]
    codes, scales = act_quant(x[..., :-ROTATED].contiguous(), KEY_GROUP)
    rotated = x[..., -ROTATED:].contiguous().view(torch.uint8)  # low and high bytes by turns
    return _row(
        key_row_bytes(width), codes.view(torch.uint8), rotated[..., 0::2], rotated[..., 1::2], _exponents(scales)
    )


def unpack_keys(rows: Tensor, width: int) -> Tensor:
    """The keys that `pack_keys` has stored: BF16 [.., width]."""
    unrotated = width - ROTATED
    codes = numbers(rows[..., :unrotated].contiguous().view(torch.float8_e4m3fn))
    scales = _powers(rows[..., width + ROTATED : width + ROTATED + unrotated // KEY_GROUP])
    values = _scaled(codes, scales, KEY_GROUP)
    rotated = torch.stack((rows[..., unrotated:width], rows[..., width : width + ROTATED]), -1).flatten(-2)
    return torch.cat((values, rotated.view(torch.bfloat16)), -1)


def pack_index_keys(x: Tensor) -> Tensor:
    """Round index keys and store them as codes: BF16 [.., ID], 32 divides ID, to uint8 [.., index_key_row_bytes]."""
    codes, scales = fp4_act_quant(x, INDEX_GROUP)
    return _row(index_key_row_bytes(x.shape[-1]), codes, _exponents(scales))


def unpack_index_keys(rows: Tensor, width: int) -> Tensor:
    """The index keys that `pack_index_keys` has stored: BF16 [.., width]."""
    codes = rows[..., : width // 2].contiguous()
    scales = _powers(rows[..., width // 2 : width // 2 + width // INDEX_GROUP])
    return _scaled(e2m1_values(codes), scales, INDEX_GROUP)


def plain_keys(keys: Tensor, width: int) -> Tensor:
    """Keys [.., width] as numbers, whether they are that or rows of `pack_keys`."""
    return unpack_keys(keys, width) if keys.dtype == torch.uint8 else keys


def plain_index_keys(keys: Tensor, width: int) -> Tensor:
    """Index keys [.., width] as numbers, whether they are that or rows of `pack_index_keys`."""
    return unpack_index_keys(keys, width) if keys.dtype == torch.uint8 else keys


def _row(size: int, *parts: Tensor) -> Tensor:
    row = torch.zeros(*parts[0].shape[:-1], size, dtype=torch.uint8, device=parts[0].device)
    together = torch.cat(parts, -1)
    row[..., : together.shape[-1]] = together
    return row


def _exponents(scales: Tensor) -> Tensor:
    """The biased exponents of powers of two; 255 where `act_quant` met what is not finite."""
    exponents = scales.view(torch.int32) >> 23
    return exponents.where(scales > 0, 255).to(torch.uint8)


def _scaled(values: Tensor, scales: Tensor, group: int) -> Tensor:
    return (values.view(*scales.shape, group) * scales[..., None]).flatten(-2).to(torch.bfloat16)


def _powers(exponents: Tensor) -> Tensor:
    return (exponents.int() << 23).view(torch.float32)
