"""Numerics as a stated policy: what is rounded to which format on the way through the model.

| policy | weights | linear inputs | KV and compressed KV | indexer q and k | norm of query heads |
|---|---|---|---|---|---|
| native | codes as stored, FP4 and FP8 | FP8, 1x128 | FP8, groups of 64 | Hadamard, FP4, groups of 32 | steps in BF16 |
| fp8 | codes as stored, no FP4 | FP8, 1x128 | FP8, groups of 64 | Hadamard | FP32 |
| int8 | codes as stored, INT8 | of INT8 weights: INT8, a scale a token | not rounded | Hadamard | FP32 |
| fp8-channel | codes as stored, FP8 by row | of FP8 weights: FP8, a scale a token | not rounded | Hadamard | FP32 |
| mxfp8 | codes as stored, MXFP8 | of MXFP8 weights: MXFP8, 1x32 | not rounded | Hadamard | FP32 |
| bf16 | decoded, rounded once | not rounded | not rounded | Hadamard | FP32 |

`native` is what DeepSeek's inference code computes; docs/numerics.md says why `bf16` differs from it although its
weights are exactly the same numbers. `fp8` is for chips that have FP8 but no FP4: it uses FP4 nowhere. `int8`,
`fp8-channel` and `mxfp8` are what the serving stacks compute with releases of these formats, as far as their sources
say it; weights that such a release keeps in BF16 take their inputs as they are. All other norms, the router, the
compressor, mHC, the softmax and the logits are FP32 inside under every policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from flagrelease.errors import UsageError
from flagrelease.formats.formats import FP4, FP8, FP8_CHANNEL, INT8, MXFP8
from flagrelease.model.config import FamilyConfig
from flagrelease.model.v4.cache_size import KEY_GROUP, KeyForms, key_forms
from flagrelease.model.v4.config import ModelConfig
from flagrelease.model.v4.rounding import FP4_INDEX_KEYS, FP8_KEYS
from flagrelease.model.v4.rounding import OF_RELEASE as OF_RELEASE
from flagrelease.model.v4.rounding import NumericsName as NumericsName
from flagrelease.records.manifest import MANIFEST_NAME, read_manifest

# The policy of a release without a manifest that stores weights so.
_OF_STORED: dict[str, NumericsName] = {INT8.name: "int8", FP8_CHANNEL.name: "fp8-channel", MXFP8.name: "mxfp8"}
KV_GROUP = KEY_GROUP


@dataclass(frozen=True, slots=True)
class Numerics:
    """One row of the table above, and the dtype of streams, activations and caches.

    Attributes:
        name: of the policy.
        dtype: of streams, activations and caches.
        keeps: formats whose codes are multiplied as they are stored; none: all weights are decoded.
        group: columns of a linear's input that share a scale where it is rounded to FP8 with several: 128 in V4.
        rounds: whose inputs are rounded: of every linear that DeepSeek stores in codes, of those that the release does,
            or of none.
        stepwise_q_norm: each step of the query heads' norm is rounded.
    """

    name: NumericsName
    dtype: torch.dtype
    keeps: tuple[str, ...] = ()
    rounds: Literal["every", "stored", "none"] = "none"
    stepwise_q_norm: bool = False
    group: int = 128

    @property
    def quantise_kv(self) -> bool:
        """Whether cached keys are rounded to FP8."""
        return self.name in FP8_KEYS

    @property
    def quantise_index(self) -> bool:
        """Whether the indexer's queries and keys are rounded to FP4."""
        return self.name in FP4_INDEX_KEYS

    def key_forms(self, config: ModelConfig, ratio: int, context: int) -> KeyForms:
        """How the caches of a layer store keys."""
        return key_forms(config, self.name, ratio, context, self.dtype.itemsize)

    @property
    def keep_codes(self) -> bool:
        """Whether weights stay in codes."""
        return bool(self.keeps)

    @property
    def fp4(self) -> bool:
        """Whether FP4 is used."""
        return FP4.name in self.keeps

    @property
    def reference(self) -> Literal["native", "oracle"]:
        """Which run of the source computes most alike: the native one, or the BF16 oracle.

        The policies of serving stacks round inputs, but neither cached keys nor the indexer, and other inputs more
        finely: they are nearer to the oracle, as docs/numerics.md measures.
        """
        return "native" if self.rounds == "every" else "oracle"

    def require(self, formats: frozenset[str], folder: Path) -> None:
        """Refuse a release that stores no weight in the format that this policy is about.

        Args:
            formats: names of the formats that the release in `folder` stores.
            folder: for the error.

        Raises:
            UsageError: it has none.
        """
        if self.rounds == "stored" and not formats & set(self.keeps):
            raise UsageError(
                f"{folder}: numerics {self.name!r} round the inputs of weights stored as {', '.join(self.keeps)}; this "
                f"release stores {', '.join(sorted(formats)) or 'bf16'} only"
            )


_POLICIES = {
    one.name: one
    for one in (
        Numerics(
            "native",
            torch.bfloat16,
            keeps=(FP4.name, FP8.name),
            rounds="every",
            stepwise_q_norm=True,
        ),
        Numerics("fp8", torch.bfloat16, keeps=(FP8.name,), rounds="every"),
        Numerics("int8", torch.bfloat16, keeps=(INT8.name,), rounds="stored"),
        Numerics("fp8-channel", torch.bfloat16, keeps=(FP8_CHANNEL.name,), rounds="stored"),
        Numerics("mxfp8", torch.bfloat16, keeps=(MXFP8.name,), rounds="stored"),
        Numerics("bf16", torch.bfloat16),
    )
}


def choose_numerics(name: str, dtype: torch.dtype, config: FamilyConfig, output_parts: int = 1) -> Numerics:
    """The policy called `name`, computing in `dtype`.

    float32 does not go with `native` and `fp8`: their rounding of activations is defined on BF16 values. With `bf16` it
    is the reference for other implementations, with weights decoded to float32. `output_parts`: into how many the ranks
    cut wo_b's input, the only rounded one that they cut.

    Raises:
        UsageError: an unknown name, a dtype that does not go with it, or widths that groups do not divide.
    """
    if name not in _POLICIES:
        raise UsageError(f"numerics {name!r}: known are {', '.join(_POLICIES)}")
    numerics = replace(_POLICIES[name], dtype=dtype, group=config.activation_group)
    dtypes = (torch.bfloat16,) if numerics.rounds == "every" else (torch.bfloat16, torch.float32)
    if dtype not in dtypes:
        raise UsageError(f"numerics {name!r} computes in {' or '.join(map(str, dtypes))}, not {dtype}")
    if numerics.rounds == "every":
        _check_groups(config, output_parts, "FP8", config.activation_group)
        for width, (columns, group) in config.key_groups.items():
            if columns % group:
                raise _group_error(width, columns, "FP8", group)
    elif MXFP8.name in numerics.keeps:
        _check_groups(config, output_parts, "MXFP8", 32)
    return numerics


def own_numerics(folder: Path, config: FamilyConfig, formats: frozenset[str] = frozenset()) -> NumericsName:
    """The policy that a release is made for: its manifest's dtype.

    Without a manifest it is that of the stored `formats`; of a source checkpoint `native`, or `bf16` if it has no
    `quantization_config`.

    Raises:
        VerificationError: there is a manifest, but not one of this program.
    """
    if (folder / MANIFEST_NAME).is_file():
        return OF_RELEASE[read_manifest(folder).target.dtype]
    for name, policy in _OF_STORED.items():
        if name in formats:
            return policy
    return "bf16" if config.quantization_config is None else "native"


def _check_groups(config: FamilyConfig, output_parts: int, fmt: str, group: int) -> None:
    cut = f" / {output_parts} ranks" if output_parts > 1 else ""
    widths = {
        "hidden_size": config.hidden_size,
        "q_lora_rank": config.q_lora_rank,
        "moe_intermediate_size": config.moe_intermediate_size,
        f"o_groups * o_lora_rank{cut}": config.o_groups * config.o_lora_rank // output_parts,
    }
    for name, width in widths.items():
        if width % group:
            raise _group_error(name, width, fmt, group)


def _group_error(name: str, width: int, fmt: str, group: int) -> UsageError:
    return UsageError(f"{name} is {width}: activations are rounded to {fmt} in groups of {group}, which must divide it")
