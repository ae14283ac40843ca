"""The options of `plan` and `convert` that are about several machines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from flagrelease.errors import UsageError


class ExecutorChoice(str, Enum):
    """What runs a conversion."""

    LOCAL = "local"
    RAY = "ray"


ExecutorOption = Annotated[
    ExecutorChoice,
    typer.Option("--executor", help="local: this machine. ray: the nodes of a Ray cluster, over a file system of all."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="HOST:PORT",
        help="With --executor ray: the cluster. Default: the one that this machine belongs to.",
    ),
]
PartsOption = Annotated[
    int | None,
    typer.Option(
        "--parts",
        min=1,
        metavar="N",
        help="How many parts. plan: shows what each writes and reads. convert --executor ray: default, one for a node.",
    ),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Make part I of N, whole files in DIR/parts/; other machines make the other parts (docs/cluster.md).",
    ),
]
MergeOption = Annotated[
    bool,
    typer.Option("--merge", help="Make the releases of the parts in DIR/parts/. Reads every file once, copies none."),
]


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the machines of a conversion share it.

    Attributes:
        part: this machine's, as (I, N).
        merge: the parts are merged.
        cluster: the address of the cluster whose nodes make the parts.
    """

    part: tuple[int, int] | None
    merge: bool
    cluster: str | None

    @staticmethod
    def of(part: str | None, merge: bool, executor: ExecutorChoice, parts: int | None, cluster: str | None) -> Sharing:
        """Of the options.

        Raises:
            UsageError: `part` is none, or options contradict each other.
        """
        from flagrelease.convert.sharing.shares import parse_part

        ray = executor is ExecutorChoice.RAY
        if merge and part is not None:
            raise UsageError("--part makes one part, --merge makes the releases of all of them: give one")
        if ray and (merge or part is not None):
            raise UsageError("--executor ray makes all parts and merges them: leave out --part and --merge")
        if not ray and (parts is not None or cluster is not None):
            raise UsageError(
                "--parts and --cluster belong to --executor ray; on one machine of several give --part I/N"
            )
        return Sharing(None if part is None else parse_part(part), merge, (cluster or "auto") if ray else None)

    def require_alone(self, disk: str | None, source_digests: Path | None, device: str) -> None:
        """Refuse options that belong to other conversions.

        Raises:
            UsageError: with both options.
        """
        if disk is not None and (self.part is not None or self.merge or self.cluster is not None):
            raise UsageError(
                "--disk hands finished files over; parts of a shared conversion stay until they are merged"
            )
        if self.merge and source_digests is not None:
            raise UsageError(
                "--source-digests are compared while a part is made: give them with --part, not with --merge"
            )
        if self.cluster is not None and device == "cuda":
            raise UsageError("--device cuda is for one machine; jobs of a cluster decode on CPUs")
