"""Numerics as a stated policy: what is rounded to which format on the way through the model.

| policy | weights | linear inputs | KV and compressed KV | indexer q and k | norm of query heads |
|---|---|---|---|---|---|
| native | codes as stored, FP4 and FP8 | FP8, 1x128 | FP8, groups of 64 | Hadamard, FP4, groups of 32 | steps in BF16 |
| fp8 | codes as stored, no FP4 | FP8, 1x128 | FP8, groups of 64 | Hadamard | FP32 |
| bf16 | decoded exactly | not rounded | not rounded | Hadamard | FP32 |

`native` is what DeepSeek's inference code computes; docs/engine.md says why `bf16` differs from it although its weights
are exactly the same numbers. `fp8` is for chips that have FP8 but no FP4: it uses FP4 nowhere. All other norms, the
router, the compressor, mHC, the softmax and the logits are FP32 inside under every policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from flagrelease.errors import UsageError
from flagrelease.formats.releases import ReleaseFormatName
from flagrelease.model.v4.config import ModelConfig
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest

NumericsName = Literal["native", "fp8", "bf16"]
# What is rounded in a run of each release format.
OF_RELEASE: dict[ReleaseFormatName, NumericsName] = {
    "native": "native",
    "bf16": "bf16",
    "fp8": "fp8",
    "fp8-e8m0": "fp8",
    "fp8-bf16-wo-a": "fp8",
    "int8": "bf16",
    "int8-experts": "bf16",
    "fp8-channel": "bf16",
    "w8a8-ascend": "bf16",
    "mxfp8": "bf16",
}
KV_GROUP = 64  # columns of a cached key that share one FP8 scale


@dataclass(frozen=True, slots=True)
class Numerics:
    """One row of the table above, and the dtype of streams, activations and caches."""

    name: NumericsName
    dtype: torch.dtype
    keep_codes: bool
    fp4: bool
    quantise_inputs: bool
    quantise_kv: bool
    quantise_index: bool
    stepwise_q_norm: bool


def choose_numerics(name: str, dtype: torch.dtype, config: ModelConfig, output_parts: int = 1) -> Numerics:
    """The policy called `name`, computing in `dtype`.

    float32 goes with `bf16` only (its weights decoded to float32: the reference for other implementations): rounding
    activations to FP8 is defined on BF16 values. `output_parts`: into how many the ranks cut wo_b's input, the only
    rounded one that they cut.

    Raises:
        UsageError: an unknown name, a dtype that does not go with it, or widths that FP8 groups do not divide.
    """
    table = {
        "native": Numerics("native", dtype, True, True, True, True, True, True),
        "fp8": Numerics("fp8", dtype, True, False, True, True, False, False),
        "bf16": Numerics("bf16", dtype, False, False, False, False, False, False),
    }
    if name not in table:
        raise UsageError(f"numerics {name!r}: known are {', '.join(table)}")
    numerics = table[name]
    dtypes = (torch.bfloat16,) if numerics.quantise_inputs else (torch.bfloat16, torch.float32)
    if dtype not in dtypes:
        raise UsageError(f"numerics {name!r} computes in {' or '.join(map(str, dtypes))}, not {dtype}")
    if numerics.quantise_inputs:
        _check_groups(config, output_parts)
    return numerics


def own_numerics(folder: Path, config: ModelConfig) -> NumericsName:
    """The policy that a release is made for: its manifest's dtype.

    Without a manifest it is a source checkpoint: `native`, or `bf16` if it has no `quantization_config`.

    Raises:
        VerificationError: there is a manifest, but not one of this program.
    """
    if (folder / MANIFEST_NAME).is_file():
        return OF_RELEASE[read_manifest(folder).target.dtype]
    return "bf16" if config.quantization_config is None else "native"


def _check_groups(config: ModelConfig, output_parts: int) -> None:
    cut = f" / {output_parts} ranks" if output_parts > 1 else ""
    widths = {
        "hidden_size": (config.hidden_size, 128),
        "q_lora_rank": (config.q_lora_rank, 128),
        "moe_intermediate_size": (config.moe_intermediate_size, 128),
        f"o_groups * o_lora_rank{cut}": (config.o_groups * config.o_lora_rank // output_parts, 128),
        "head_dim - qk_rope_head_dim": (config.head_dim - config.qk_rope_head_dim, KV_GROUP),
    }
    for name, (width, group) in widths.items():
        if width % group:
            raise UsageError(
                f"{name} is {width}: activations are rounded to FP8 in groups of {group}, which must divide it"
            )
