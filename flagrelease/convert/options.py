"""Options of conversion that choose one of a few words."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class OGroupsChoice(str, Enum):
    """How wo_a and wo_b are cut where mp > o_groups."""

    SHARED = "shared"
    SPLIT = "split"


class DraftsChoice(str, Enum):
    """Whether a release holds the draft stages of its model."""

    KEEP = "keep"
    DROP = "drop"


class DeviceChoice(str, Enum):
    """Where decoding runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


OGroupsOption = Annotated[
    OGroupsChoice | None,
    typer.Option(
        "--o-groups",
        help="With more ranks than o-groups: ranks of one o-group hold the same slice of wo_a and wo_b (shared) or "
        "one slice each (split).",
    ),
]
DraftsOption = Annotated[
    DraftsChoice | None,
    typer.Option(
        "--drafts",
        help="keep or drop the draft stages of the model (mtp.*), which make answers faster and change none. Default: "
        "as the recipe says, else keep.",
    ),
]
DeviceOption = Annotated[DeviceChoice, typer.Option("--device", help="Where weights are decoded; auto is the CPU.")]
