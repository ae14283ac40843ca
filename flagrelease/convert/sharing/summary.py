"""`PartSummary`: what `plan --parts` says of one machine."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.markup import escape

from flagrelease.console import human_bytes, out, table
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.sharing.shares import Share

_SHOWN = 20  # lines; --json has all of them


class PartSummary(BaseModel):
    """What one of several machines does (`--part`).

    Attributes:
        files: `RELEASE/FILE` that it writes.
        bytes: of them.
        bytes_to_read: of the source, for them.
        bytes_to_compare: of source files that it also hashes, beside the work, where somebody states their digest.
    """

    model_config = ConfigDict(frozen=True)

    part: str
    files: list[str]
    bytes: int
    bytes_to_read: int
    bytes_to_compare: int


def summarise_share(plan: Plan, share: Share) -> PartSummary:
    """The numbers of one share of `plan`."""
    return PartSummary(
        part=str(share),
        files=share.names(plan),
        bytes=share.nbytes,
        bytes_to_read=share.bytes_to_read,
        bytes_to_compare=share.bytes_to_compare,
    )


def show_parts(parts: Sequence[PartSummary], source_bytes: int) -> None:
    """A line for each part, and what all of them read together."""
    rows = table(
        "part", ">files", ">bytes", ">", ">source read", ">compared", "which", title="\nwhat each machine does"
    )
    shown = len(parts) if len(parts) <= _SHOWN else _SHOWN - 1
    for part in parts[:shown]:
        which = part.files[0] if len(part.files) == 1 else f"{part.files[0]} .. {part.files[-1]}"
        read, compared = human_bytes(part.bytes_to_read), human_bytes(part.bytes_to_compare)
        rows.add_row(
            part.part, f"{len(part.files)}", f"{part.bytes:,}", human_bytes(part.bytes), read, compared, escape(which)
        )
    out().print(rows)
    if shown < len(parts):
        out().print(f"  and {len(parts) - shown} more parts (--json has them all)")
    read_by_all = sum(part.bytes_to_read for part in parts)
    out().print(
        f"all parts read {human_bytes(read_by_all)} ({read_by_all / source_bytes:.2f} times the source), the largest "
        f"{human_bytes(max(part.bytes_to_read for part in parts))}; compared: source files that a part also hashes "
        f"where somebody states their digest"
    )
