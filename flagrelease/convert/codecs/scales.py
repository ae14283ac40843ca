"""Stored scales as numbers. E8M0 scale code b is 2^(b-127), and 255 is NaN (OCP Microscaling Specification)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagrelease.convert.codecs.decoder import F64

# dtype -> numpy type of the stored bits of a scale
_SCALE_STORAGE: dict[str, Any] = {"F8_E8M0": np.uint8, "BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def e8m0_values() -> F64:
    """The value of each E8M0 scale code, float64 [256]; code 255 is NaN."""
    values = np.ldexp(np.ones(256), np.arange(256) - 127)
    values[255] = np.nan
    return values


def scale_storage(dtype: str) -> Any:
    """The numpy dtype that holds scales of safetensors dtype `dtype` bit by bit."""
    return _SCALE_STORAGE[dtype]


def scale_values(stored: NDArray[Any], dtype: str) -> F64:
    """The float64 values of stored scales, NaN included."""
    if dtype == "F8_E8M0":
        return np.asarray(e8m0_values()[stored])
    floats = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else stored
    with np.errstate(invalid="ignore"):  # numpy warns of a signalling NaN; `work` refuses it
        return floats.astype(np.float64)


def exponents_of(scales: F64) -> NDArray[np.int32] | None:
    """log2 of scales that are all powers of two; None if one is not."""
    fraction, exponent = np.frexp(scales)
    return None if (fraction != 0.5).any() else (exponent - 1).astype(np.int32)
