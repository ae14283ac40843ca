"""`--speculate`: how many tokens are drafted ahead, by a release's own draft stages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flagrelease.errors import UsageError
from flagrelease.model.config import FamilyConfig
from flagrelease.model.families import read_config

AUTO, OFF = "auto", "off"


@dataclass(frozen=True, slots=True)
class Speculation:
    """What was chosen for one release.

    Attributes:
        most: drafts of a sequence in a step; 0: none, and no draft stage is loaded.
        adaptive: whether drafting stops where it does not pay (`batch/worth.py`).
        said: for the user, in a few words.
    """

    most: int = 0
    adaptive: bool = False
    said: str = "drafts: off"


NO_SPECULATION = Speculation()


def choose_speculation(wanted: str, release: Path) -> Speculation:
    """What `--speculate` means for a release, from its config alone: before a tensor is read.

    Raises:
        UsageError: neither auto, off nor a number; more drafts than the stages of this release guess at once.
        CheckpointError: the folder has no config of a model.
    """
    if wanted not in (AUTO, OFF) and not re.fullmatch("[1-9][0-9]{0,3}", wanted):
        raise UsageError(f"--speculate {wanted}: auto, off or a number of drafts is expected")
    if wanted == OFF:
        return NO_SPECULATION
    config = read_config(release / "config.json")[0]
    made, stages = config.most_drafts, describe_stages(config)
    if wanted == AUTO:
        if not made:
            return Speculation(said=f"drafts: none, as the release holds {stages}")
        return Speculation(made, adaptive=True, said=f"drafts: up to {made} a step while they pay, by {stages}")
    if int(wanted) > made:
        limit = f"{made} a step is the most" if made else "no drafts can be made"
        raise UsageError(f"--speculate {wanted}: {limit}, for the release holds {stages}")
    return Speculation(int(wanted), said=f"drafts: at most {wanted} a step, by {stages}")


def describe_stages(config: FamilyConfig) -> str:
    """The draft stages of a release, as far as the engine knows them."""
    if config.dspark_block_size is not None and not config.most_drafts:
        return f"DSpark's {config.n_mtp_layers} stages of a family whose draft stages the engine does not run yet"
    if config.dspark_block_size is not None:
        return f"DSpark's {config.n_mtp_layers} stages, which draft blocks of {config.dspark_block_size}"
    if config.n_mtp_layers == 0:
        return "no draft stages"
    if config.n_mtp_layers == 1:
        return "one MTP stage"
    return f"{config.n_mtp_layers} MTP stages, of which the engine runs only a single one"
