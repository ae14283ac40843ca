"""The stored formats: one declaration each, which convert, verify and the engine all read.

A quantised weight is stored as codes and a tensor of scales, one scale for each block of the weight. A declaration says
which dtypes and names the two have in a safetensors header and how large a block is. What the bytes mean is not said
here: convert, verify and the engine each have a decoder of their own, so that a fault in one shows in the others.

A new format is one declaration here, one decoder in `convert/codecs/`, one in `verify/decoder.py`, and one class of
weights in the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.shard.header import DTYPE_BITS

# A scale is named like its weight, with one of these in place of `.weight`. The first is DeepSeek-V4's own spelling and
# the only one in mp files; the second is the spelling of DeepSeek-V3 and of Hugging Face's FP8 releases.
WEIGHT_SUFFIX = ".weight"
SCALE_SUFFIXES = (".scale", ".weight_scale_inv")
# compressed-tensors' and ModelSlim's spelling: a scale for each row, or for 32 elements of one.
ROW_SCALE_SUFFIXES = (".weight_scale",)
# ModelSlim stores a zero point for each row beside the scale. flagrelease writes and accepts zeros only.
OFFSET_SUFFIX = ".weight_offset"

# What every scale must be, in every format. Zero is allowed: it makes a block of zeros.
SCALE_RULE = "a scale is a finite number that is not negative"


@dataclass(frozen=True)
class Format:
    """A quantised format as headers show it.

    A weight of this format is told from others by its dtype and shape.

    Attributes:
        name: as in reports and config.json.
        weight_dtypes: safetensors dtypes that the codes may have.
        scale_dtypes: safetensors dtypes that the scales may have.
        elements_per_byte: 1 for FP8, 2 for FP4.
        fixed_block: (rows, elements along the input) that share a scale, where 0 elements stand for the whole row;
            None: `weight_block_size` of config.json.
        scale_suffixes: how the name of a scale may end.
    """

    name: str
    weight_dtypes: tuple[str, ...]
    scale_dtypes: tuple[str, ...]
    elements_per_byte: int
    fixed_block: tuple[int, int] | None
    scale_suffixes: tuple[str, ...] = SCALE_SUFFIXES

    def block(self, weight_block_size: tuple[int, int] | None, columns: int) -> tuple[int, int] | None:
        """(rows, elements) of a block of a weight with `columns`; None if the config does not say and must."""
        if self.fixed_block is None:
            return weight_block_size
        return self.fixed_block[0], self.fixed_block[1] or columns

    @property
    def by_row(self) -> bool:
        """Whether a scale serves a whole row, so that cutting the row cuts no block."""
        return self.fixed_block is not None and self.fixed_block[1] == 0

    def elements_per_entry(self, dtype: str) -> int:
        """Elements that one entry of the header's last dimension stands for: 2 for FP4 as I8 or U8, 1 for F4 and FP8.

        safetensors gives an F4 tensor its logical shape; an I8 or U8 tensor counts bytes.
        """
        return DTYPE_BITS[dtype] * self.elements_per_byte // 8

    def stored_shape(self, dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the header of a weight of logical `shape`."""
        return (*shape[:-1], -(-shape[-1] // self.elements_per_entry(dtype)))


FP8 = Format("fp8", ("F8_E4M3",), ("F8_E8M0", "F32", "BF16", "F16"), 1, None)
FP4 = Format("fp4", ("I8", "U8", "F4"), ("F8_E8M0",), 2, (1, 32))
INT8 = Format("int8", ("I8",), ("F32", "BF16"), 1, (1, 0), ROW_SCALE_SUFFIXES)
FP8_CHANNEL = Format("fp8-channel", ("F8_E4M3",), ("F32", "BF16"), 1, (1, 0), ROW_SCALE_SUFFIXES)
FP8_GROUP = Format("fp8-group", ("F8_E4M3",), ("F8_E8M0",), 1, (1, 32))  # Engram tables of V4.1
MXFP8 = Format("mxfp8", ("F8_E4M3",), ("U8",), 1, (1, 32), ROW_SCALE_SUFFIXES)

# What DeepSeek publishes, and so what can be converted.
SOURCE_FORMATS = (FP8, FP4, FP8_GROUP)
FORMATS = (*SOURCE_FORMATS, INT8, FP8_CHANNEL, MXFP8)


@dataclass(frozen=True)
class StorageRule:
    """How a kind of tensor may be stored: plain in one dtype, or in one of some formats. `words` describe it."""

    words: str
    plain: str
    formats: tuple[Format, ...] = ()


def scale_names(weight: str) -> tuple[str, ...]:
    """The names that the scale of `weight` may have in a source, DeepSeek-V4's own first."""
    return tuple(weight.removesuffix(WEIGHT_SUFFIX) + suffix for suffix in SCALE_SUFFIXES)


def row_scale_name(weight: str) -> str:
    """The name of the scales of `weight` in compressed-tensors and ModelSlim releases."""
    return weight.removesuffix(WEIGHT_SUFFIX) + ROW_SCALE_SUFFIXES[0]


def offset_name(weight: str) -> str:
    """The name of the zero points of `weight` in ModelSlim releases."""
    return weight.removesuffix(WEIGHT_SUFFIX) + OFFSET_SUFFIX


def weight_of_scale(name: str) -> str | None:
    """The name of the weight whose scale is called `name`; None if it is not the name of a scale."""
    suffixes = SCALE_SUFFIXES + ROW_SCALE_SUFFIXES
    suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    return None if suffix is None else name.removesuffix(suffix) + WEIGHT_SUFFIX


def weight_of_offset(name: str) -> str | None:
    """The name of the weight whose zero points are called `name`; None if it is not the name of zero points."""
    return name.removesuffix(OFFSET_SUFFIX) + WEIGHT_SUFFIX if name.endswith(OFFSET_SUFFIX) else None


def block_counts(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scales: blocks along each dimension of a matrix, a ragged last one included."""
    return tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
