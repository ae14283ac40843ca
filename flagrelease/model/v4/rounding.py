"""Names of the numerics that a run can have, which of them a release is made for, and which round cached keys.

What else each policy rounds is said in `engine/numerics.py`. This stands apart from it because plans, which load no
engine, say what caches take.
"""

from __future__ import annotations

from typing import Literal

from flagrelease.formats.releases import ReleaseFormatName

NumericsName = Literal["native", "fp8", "bf16", "int8", "fp8-channel", "mxfp8"]
# What is rounded in a run of each release format.
OF_RELEASE: dict[ReleaseFormatName, NumericsName] = {
    "native": "native",
    "bf16": "bf16",
    "fp8": "fp8",
    "fp8-e8m0": "fp8",
    "fp8-bf16-wo-a": "fp8",
    "int8": "int8",
    "int8-experts": "int8",
    "fp8-channel": "fp8-channel",
    "w8a8-ascend": "int8",
    "mxfp8": "mxfp8",
}
FP8_KEYS = frozenset[NumericsName](("native", "fp8"))  # round cached keys to FP8 in all but the rotated columns
FP4_INDEX_KEYS = frozenset[NumericsName](("native",))  # round the indexer's queries and keys to FP4
