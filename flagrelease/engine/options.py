"""Options that the engine's commands have in common, and their choices."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class NumericsChoice(str, Enum):
    """What is rounded where; docs/numerics.md."""

    NATIVE = "native"
    FP8 = "fp8"
    BF16 = "bf16"
    INT8 = "int8"
    FP8_CHANNEL = "fp8-channel"
    MXFP8 = "mxfp8"


class DtypeChoice(str, Enum):
    """Of activations and caches."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class ChatModeChoice(str, Enum):
    """Of a chat: answer at once, think first, or think first with an effort, which docs/chat.md explains."""

    CHAT = "chat"
    THINKING = "thinking"
    LOW = "low"
    HIGH = "high"
    MAX = "max"


class ModeChoice(str, Enum):
    """The same, or no chat at all: the text is continued as it is."""

    CHAT = "chat"
    THINKING = "thinking"
    LOW = "low"
    HIGH = "high"
    MAX = "max"
    RAW = "raw"


class ReplayChoice(str, Enum):
    """How the tokens go through the model."""

    PREFILL = "prefill"
    DECODE = "decode"


ReleaseArgument = Annotated[Path, typer.Argument(metavar="RELEASE", help="A release folder.", show_default=False)]
NumericsOption = Annotated[
    NumericsChoice | None,
    typer.Option("--numerics", help="What is rounded where. Default: what the release is; docs/numerics.md."),
]
DtypeOption = Annotated[
    DtypeChoice, typer.Option("--dtype", help="float32 makes a reference; not with native and fp8.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, or one of the chip table: cuda, npu, musa.")]
OperatorsOption = Annotated[
    str, typer.Option("--operators", help="Which operators compute: torch, triton, auto, flag_gems, emulated.")
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context", min=1, help="Tokens a sequence may have. Default: 16384, or the model's if that is less."
    ),
]
SpeculateOption = Annotated[
    str,
    typer.Option(
        "--speculate",
        metavar="auto|off|N",
        help="Let the release's draft stages guess tokens ahead: the same text, sooner. N: at most so many in a step. "
        "auto: as many as they make, while it pays. off: the stages are not loaded.",
    ),
]
RowsOption = Annotated[int, typer.Option("--batch", min=1, help="Sequences at once.")]
