"""`ConvertSpec`: what of a recipe changes bytes. It knows no chips: a conversion without a recipe loads none."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DEFAULT_MAX_FILE_BYTES = 5 * 10**9


def parse_bytes(value: Any) -> Any:
    """`5 GB`, `48 GiB` or a number, as bytes. Anything else is left for the schema to refuse."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", value.strip()) if isinstance(value, str) else None
    if match and match[2].upper() in _UNITS and match[1].count(".") <= 1 and match[1] != ".":
        return round(float(match[1]) * _UNITS[match[2].upper()])
    return value


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LossLimit(_Strict):
    """How much of a weight may be inexact.

    Attributes:
        largest_share_of_inexact_rows: of a weight's rows, from 0 to 1. FP4 repacked in blocks has no such rows: there a
            limit is taken like `refuse`.
    """

    largest_share_of_inexact_rows: float = Field(ge=0, le=1)


EngramTables = Literal["decode", "keep"]


class ConvertSpec(_Strict):
    """Everything about the conversion that changes a byte, and what it may let pass.

    Attributes:
        max_file_bytes: files of the hf layout are at most this long (a longer tensor has a file of its own).
        rank_part_bytes: a rank of an mp layout that is longer is written in parts of at most this; None: one file,
            which is what DeepSeek's generate.py opens.
        lossy_repack: whether an element that a release's format cannot hold exactly stops the work (`refuse`), is
            rounded and counted (`allow`), or stops it where more than a share of a weight's rows are not exact.
        int8_scale, channel_scale: the rule for scales by row; `flagrelease.formats.releases` has the formulas.
        engram_tables: what a BF16 release of DeepSeek-V4.1 makes of its Engram tables: BF16 (`decode`), or the source's
            FP8 codes with their scales (`keep`), which takes 190 GB less.
        allow_zero_tensors: names of stored tensors, or patterns with *, whose bytes may all be zero. Elsewhere such a
            weight or scale is a damaged file.
    """

    max_file_bytes: ByteSize = DEFAULT_MAX_FILE_BYTES
    rank_part_bytes: ByteSize | None = None
    lossy_repack: Literal["refuse", "allow"] | LossLimit = "refuse"
    int8_scale: Literal["best", "power-of-two", "absmax", "mse"] = "best"
    channel_scale: Literal["power-of-two", "absmax"] = "power-of-two"
    allow_zero_tensors: tuple[str, ...] = ()
    engram_tables: EngramTables = "decode"

    @model_serializer(mode="wrap")
    def _without_the_usual(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans and manifests of other models stay as they were before V4.1."""
        document: dict[str, Any] = dump(self)
        return {key: value for key, value in document.items() if (key, value) != ("engram_tables", "decode")}
