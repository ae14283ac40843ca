"""`HandOverChoice`: where finished files go, as the command line says it; refused before a byte is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flagrelease.convert.planning.plan import Plan, ReleasePlan
from flagrelease.convert.planning.target import Target
from flagrelease.errors import UsageError
from flagrelease.publish.hubs.registry import find_licence, schemes

if TYPE_CHECKING:
    from flagrelease.publish.staging.place import Place, Staged


@dataclass(frozen=True, slots=True)
class HandOverChoice:
    """`--to`, `--repo`, `--private`, `--hand-over` and `--hand-over-check`."""

    to: str | None = None
    repo: str | None = None
    private: bool = False
    hand_over: str | None = None
    check: str | None = None

    def require_with(self, disk: str | None) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: a budget without a place, a place without a budget, two places, half of one.
        """
        if (self.hand_over is None) != (self.check is None):
            raise UsageError(
                "--hand-over and --hand-over-check: give both; an exit code alone does not say what is there"
            )
        if self.to is not None and self.hand_over is not None:
            raise UsageError("--to and --hand-over: give one of them")
        if self.to is None and (self.repo is not None or self.private):
            raise UsageError("--repo and --private belong to --to")
        placed = self.to is not None or self.hand_over is not None
        if disk is not None and not placed:
            raise UsageError(
                f"--disk {disk}: say where finished files go, --to {'|'.join(schemes())}, or --hand-over with "
                "--hand-over-check (plan --disk needs neither)"
            )
        if placed and disk is None:
            raise UsageError("--to and --hand-over need --disk SIZE; without it, publish what convert wrote")

    def places(self, plan: Plan, repositories: Mapping[Target, str]) -> dict[str, Place]:
        """A place for each release, by its folder's name; a hub's client is opened, nothing is asked yet.

        `repositories` are those in which the recipe publishes the releases.

        Raises:
            UsageError: a release without a repository or licence, a command that is not there.
            ResourceError: the client of the hub is not installed.
        """
        from flagrelease.publish.staging.places import places_by_commands, places_on_a_hub

        releases = [_staged(plan, release, repositories) for release in plan.releases]
        if self.to is not None:
            return places_on_a_hub(self.to, releases, self.repo, self.private)
        assert self.hand_over is not None
        assert self.check is not None
        return places_by_commands(self.hand_over, self.check, releases)


def _staged(plan: Plan, release: ReleasePlan, repositories: Mapping[Target, str]) -> Staged:
    from flagrelease.publish.staging.place import Staged

    licence = plan.provenance.license
    return Staged(
        folder=release.target.folder,
        plan=release.digest,
        names=frozenset(file.name for file in release.files),
        repo=repositories.get(release.target),
        model=plan.provenance.model,
        licence=None if licence is None else find_licence(licence),
    )
