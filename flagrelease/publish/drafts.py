"""What a card says of draft stages: which of them the release holds, and who drafts with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flagrelease.chips.stacks import DraftKind
from flagrelease.errors import VerificationError
from flagrelease.publish.claims import STACKS, Claim, Evidence, Line, Row, Status, manifest, of_stack
from flagrelease.publish.records import Records, read_document
from flagrelease.publish.serving import Served
from flagrelease.records.chip_releases import FLAGOS

_STAGE = re.compile(r"mtp\.(\d+)\.")
_OF_DSPARK = "mtp.0.main_proj.weight"
_KNOWN = {"verified": "read in its source", "stated": "by its makers' word", "inferred": "concluded from its source"}


@dataclass(frozen=True, slots=True)
class HeldDrafts:
    """The draft stages of a release.

    Attributes:
        kind: `mtp`, the preview's, or `dspark`.
        stages: how many.
        tokens: that they guess at once, as they were trained.
    """

    kind: DraftKind
    stages: int
    tokens: int

    def __str__(self) -> str:
        """For people."""
        if self.kind == "dspark":
            return f"DSpark: {self.stages} stages, which draft blocks of {self.tokens} tokens"
        if self.stages == 1:
            return "MTP of the preview: 1 stage, which drafts one token"
        return f"MTP: {self.stages} stages, each of which drafts one token"


def held_drafts(records: Records) -> HeldDrafts | None:
    """By the names of the tensors in the manifest; None if there are no draft stages.

    Raises:
        VerificationError: the release holds DSpark's stages, and config.json cannot be read or gives no size of blocks.
    """
    tensors = records.manifest.tensors
    stages = len({match[1] for name in tensors if (match := _STAGE.match(name))})
    if not stages:
        return None
    if not any(name.startswith(_OF_DSPARK) for name in tensors):
        return HeldDrafts("mtp", stages, stages)
    document = read_document(records, "config.json")
    size = document.get("text_config", document).get("dspark_block_size")  # V4.1 has the model's numbers there
    if type(size) is not int or size < 1:
        raise VerificationError(f"{records.release / 'config.json'}: dspark_block_size {size!r}: a number is expected")
    return HeldDrafts("dspark", stages, size)


def drafts_row(records: Records, status: Status) -> Row:
    """The row of the card's first table; `status` is that of what the files hold."""
    held = held_drafts(records)
    if held is not None:
        return Row(status, manifest("/tensors"), ("draft stages", str(held)))
    if records.target.drafts == "drop":
        said = "left out: answers are the same, without speculation"
        return Row(status, manifest("/target/drafts"), ("draft stages", said))
    return Row(status, manifest("/target"), ("draft stages", "none: the source has none"))


def drafting(records: Records, stacks: Iterable[Served]) -> Iterator[Line]:
    """Lines of the section; none where there are no draft stages."""
    held = held_drafts(records)
    if held is None:
        return
    yield "## Drafts"
    yield ""
    yield Claim(
        "inferred",
        manifest("/tensors"),
        f"{held}. The model checks every token that is drafted: answers come sooner and stay the same. A server that "
        "does not use the stages serves the release all the same.",
        bullet=False,
    )
    yield ""
    own = Evidence(STACKS, f"/stacks/{FLAGOS}")
    if held.kind == "mtp" and held.stages > 1:
        yield Claim("inferred", own, "flagrelease: not used; its engine runs a single MTP stage, or DSpark's")
    elif not records.family.runs_drafts:
        said = f"flagrelease: not used; its engine does not run the draft stages of {records.family.title} yet"
        yield Claim("inferred", own, said)
    else:
        said = "flagrelease: `serve` drafts while that pays (`--speculate`), `generate` with `--speculate auto`"
        yield Claim("inferred", own, said)
    for one in stacks:
        if one.loads:
            yield Claim("inferred", of_stack(one.stack.id), f"{one.name}: {_how(one, held.kind)}")


def _how(one: Served, kind: DraftKind) -> str:
    launch = one.launch
    known = None if launch is None else launch.drafts.get(kind)
    if known is None:
        return "not known"
    return f"{known.how} ({_KNOWN[known.mark]})"
