"""What data can hold that no header shows: NaN codes, and scales that are no numbers to multiply with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.codecs.decoders import DECODERS
from flagrelease.convert.codecs.lookup import contains
from flagrelease.convert.codecs.scales import scale_values
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import SCALE_RULE, Format
from flagrelease.model.stored import StoredWeight
from flagrelease.shard.header import TensorMeta

_E8M0_NAN = 255


def require_scales(scale: TensorMeta, stored: NDArray[Any], first: int = 0) -> None:
    """Refuse scales that are NaN, infinite or negative. `stored` are the rows from `first` on.

    Raises:
        CheckpointError: with the scale and the place of the first.
    """
    bad = stored == _E8M0_NAN if scale.dtype == "F8_E8M0" else None
    if bad is None:
        values = scale_values(stored, scale.dtype)
        bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise CheckpointError(
            f"{scale.file}: scale {scale.name!r} at [{first + row}, {column}]: stored as {stored[row, column]}, "
            f"which is NaN, infinite or negative; {SCALE_RULE}"
        )


def require_numbers(tensor: StoredWeight, fmt: Format, codes: U8, row: int) -> None:
    """Refuse NaN among the codes [R, C] of the rows from `row` on.

    Raises:
        CheckpointError: with the tensor and the place of the first.
    """
    nan_codes = DECODERS[fmt.name].nan_codes
    if nan_codes.any() and contains(codes, nan_codes):
        r, c = np.argwhere(nan_codes[codes])[0]
        raise CheckpointError(
            f"{tensor.weight.file}: tensor {tensor.spec.name!r} at [{row + r}, {c}]: "
            f"{fmt.name} code 0x{codes[r, c]:02X} is NaN"
        )


def require_finite(tensor: StoredWeight, out: U8, shape: tuple[int, ...], row: int) -> None:
    """Refuse infinities among BF16 numbers, `out`, made of stored bytes of `shape` from row `row` on.

    Raises:
        CheckpointError: with the tensor and the place of the first.
    """
    infinite = (out.view(np.uint16) & 0x7FFF) == 0x7F80
    if infinite.any():
        r, c = np.argwhere(infinite.reshape(shape[0], -1))[0]
        raise CheckpointError(
            f"{tensor.weight.file}: tensor {tensor.spec.name!r} at [{row + r}, {c}]: value times scale is beyond BF16"
        )
