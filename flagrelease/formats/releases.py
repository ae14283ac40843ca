"""What a release can be made of: for each format of a target `FORMAT:LAYOUT`, how it stores each kind of weight.

convert writes what is declared here, verify expects it, and the replayed loaders of the serving stacks read it. A new
release format is one row of `RELEASE_FORMATS` if its stored formats exist already (`formats.py`).

Rules for the numbers of a scale by row, where x is the exact value of a weight's element (code times scale):

* power of two: s = 2^ceil(log2(rowmax / largest)), where `largest` is 127 for INT8 and 448 for E4M3.
* absmax: s = rowmax / largest, computed in float64 and rounded once to float32 (to BF16 where `bf16_scales`).
* codes: x / s rounded to the nearest code, ties to even, from the float64 quotient of x and the stored s; INT8 codes
  are clipped to [-127, 127], E4M3 codes to +-448. -0.0 keeps its sign in E4M3. A row of zeros has scale 1.
* best (INT8): the power of two if every element of the row is exact under it. Otherwise the rule with the smaller sum
  of (q * s - x)^2, added in float64 in the order of the row's elements; a tie goes to the power of two.
* mse (INT8): of the 201 candidates s_i = float32(rowmax / 127 * (0.5 + 0.0025 * i)), i = 0..200, and the power of two,
  the one with the smallest such sum; the larger scale wins a tie.
* Every scale is at least 2^-126, the smallest normal float32.

Sources of the rules and names: the loaders of vLLM, SGLang and vllm-ascend, and the published releases of the vendors,
as docs/stacks.md lists them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from flagrelease.formats.formats import FP8, FP8_CHANNEL, INT8, MXFP8, WEIGHT_SUFFIX, Format

MODELSLIM_DESCRIPTION = "quant_model_description.json"

ReleaseFormatName = Literal[
    "bf16", "fp8", "native", "fp8-e8m0", "fp8-bf16-wo-a", "int8", "int8-experts", "fp8-channel", "w8a8-ascend", "mxfp8"
]


class Kept(Enum):
    """Stands in place of a stored format."""

    AS_STORED = "the source's own codes and scales"


class Description(Enum):
    """How a release says what its weights are."""

    DEEPSEEK = "quantization_config as DeepSeek writes it, expert_dtype beside it; none if nothing is quantised"
    COMPRESSED_TENSORS = "quantization_config of compressed-tensors"
    MODELSLIM = f"{MODELSLIM_DESCRIPTION}, and no quantization_config"


@dataclass(frozen=True, slots=True)
class ReleaseFormat:
    """One format of a release.

    Attributes:
        name: as in a target.
        words: what it is, for tables and cards.
        experts, linears, wo_a: the format that routed experts, the other quantised weights, and the attention's wo_a
            get. None is BF16. In mp layouts wo_a is BF16 whatever this says: DeepSeek's and FlagOS' inference code
            loads it so.
        layouts: which it exists in.
        f32_scales: the scales of FP8 experts are F32 in the hf layout, and otherwise E8M0.
        bf16_scales: scales by row are rounded to BF16, which is what the loader keeps of them.
        offsets: zero points, all zero, stand beside the scales.
        plain_linears: last name components of weights that stay BF16 although they are linears.
        copies: tensor -> a further name that its bytes are stored under (where the source has the MTP stage).
        description: how it is described.
        file_stem: of the tensor files and their index in the hf layout.
    """

    name: ReleaseFormatName
    words: str
    experts: Format | Kept | None
    linears: Format | Kept | None
    wo_a: Format | Kept | None
    layouts: tuple[Literal["hf", "mp"], ...] = ("hf",)
    f32_scales: bool = False
    bf16_scales: bool = False
    offsets: bool = False
    plain_linears: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    description: Description = Description.DEEPSEEK
    file_stem: str = "model"

    def stored(self, weight: str, *, expert: bool, mp: bool) -> Format | Kept | None:
        """The format that the quantised weight called `weight` gets: None is BF16."""
        if expert:
            return self.experts
        last = weight.removesuffix(WEIGHT_SUFFIX).rpartition(".")[2]
        if last == "wo_a":
            return None if mp else self.wo_a
        return None if last in self.plain_linears else self.linears


_ASCEND_COPIES = (("embed.weight", "mtp.0.emb.tok_emb.weight"), ("head.weight", "mtp.0.head.weight"))

RELEASE_FORMATS: dict[str, ReleaseFormat] = {
    one.name: one
    for one in (
        ReleaseFormat("bf16", "BF16", None, None, None, ("hf", "mp")),
        ReleaseFormat("native", "as published", Kept.AS_STORED, Kept.AS_STORED, Kept.AS_STORED, ("hf", "mp")),
        ReleaseFormat(
            "fp8", "FP8 in blocks of 128 x 128", FP8, Kept.AS_STORED, Kept.AS_STORED, ("hf", "mp"), f32_scales=True
        ),
        ReleaseFormat("fp8-e8m0", "FP8 in blocks, expert scales E8M0", FP8, Kept.AS_STORED, Kept.AS_STORED),
        ReleaseFormat("fp8-bf16-wo-a", "FP8 in blocks, wo_a BF16", FP8, Kept.AS_STORED, None, f32_scales=True),
        ReleaseFormat(
            "int8", "INT8, a scale for each row", INT8, INT8, None, description=Description.COMPRESSED_TENSORS
        ),
        ReleaseFormat(
            "int8-experts", "experts INT8, the rest BF16", INT8, None, None, description=Description.COMPRESSED_TENSORS
        ),
        ReleaseFormat(
            "fp8-channel",
            "FP8, a scale for each row",
            FP8_CHANNEL,
            FP8_CHANNEL,
            None,
            description=Description.COMPRESSED_TENSORS,
        ),
        ReleaseFormat(
            "w8a8-ascend",
            "ModelSlim W8A8",
            INT8,
            INT8,
            None,
            bf16_scales=True,
            offsets=True,
            plain_linears=("wq_a", "wkv"),
            copies=_ASCEND_COPIES,
            description=Description.MODELSLIM,
            file_stem="quant_model_weights",
        ),
        ReleaseFormat(
            "mxfp8",
            "ModelSlim MXFP8",
            MXFP8,
            MXFP8,
            None,
            copies=_ASCEND_COPIES,
            description=Description.MODELSLIM,
            file_stem="quant_model_weights",
        ),
    )
}

_TARGET = re.compile(r"([a-z0-9-]+):(hf|mp([1-9][0-9]{0,5}))")


def parse_format_and_layout(text: str) -> tuple[ReleaseFormat, int | None]:
    """Read `FORMAT:LAYOUT`; the second is the number of ranks, None for the hf layout.

    Raises:
        ValueError: it is not one, or the format does not exist in that layout; the message says what there is.
    """
    found = _TARGET.fullmatch(text)
    if found is None or found[1] not in RELEASE_FORMATS:
        raise ValueError(
            f"{text!r} is not FORMAT:LAYOUT with one of {', '.join(RELEASE_FORMATS)} and hf or mpN, as in bf16:mp8"
        )
    release, mp = RELEASE_FORMATS[found[1]], int(found[3]) if found[3] else None
    if ("hf" if mp is None else "mp") not in release.layouts:
        raise ValueError(f"{text!r}: {release.name} exists in the hf layout only, as serving stacks load it")
    return release, mp
