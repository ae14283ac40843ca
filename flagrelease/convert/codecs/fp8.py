"""FP8 E4M3FN, as the OCP 8-bit Floating Point Specification defines it: no infinity, codes 0x7F and 0xFF are NaN."""

from __future__ import annotations

import numpy as np

from flagrelease.convert.codecs.decoder import F64, decoder_of
from flagrelease.formats.formats import FP8, FP8_GROUP


def _e4m3_values() -> F64:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6))
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -magnitude, magnitude)[:, None]


FP8_DECODER = decoder_of(FP8, _e4m3_values())
FP8_GROUP_DECODER = decoder_of(FP8_GROUP, _e4m3_values())
