"""FP4 E2M1, as the OCP Microscaling Specification defines it: two elements a byte, the low nibble first.

Code 8 is -0.0. The sign bit is kept, so that encoding gives the same byte back. DeepSeek's own converter writes +0.0
there, which is the same number with other bits.
"""

from __future__ import annotations

import numpy as np

from flagrelease.convert.codecs.decoder import F64, decoder_of
from flagrelease.formats.formats import FP4


def _e2m1_pairs() -> F64:
    code = np.arange(16)
    exponent, mantissa = (code >> 1) & 3, code & 1
    magnitude = np.where(exponent > 0, np.ldexp(1 + mantissa / 2, exponent - 1), mantissa / 2)
    value = np.where(code & 8, -magnitude, magnitude)
    byte = np.arange(256)
    return np.stack([value[byte & 15], value[byte >> 4]], axis=1)  # low nibble first


FP4_DECODER = decoder_of(FP4, _e2m1_pairs())
