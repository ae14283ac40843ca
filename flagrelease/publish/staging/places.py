"""Which place each release of a conversion gets: a branch, a private repository, or what the user's commands name."""

from __future__ import annotations

from collections.abc import Sequence

from flagrelease.errors import UsageError
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.hubs.names import STAGING_REPOSITORY
from flagrelease.publish.staging.command import CommandPlace, parse_commands
from flagrelease.publish.staging.place import Place, Staged


def places_on_a_hub(
    to: str, releases: Sequence[Staged], repo: str | None, private: bool, endpoint: str | None = None
) -> dict[str, Place]:
    """A place on a hub for each release, by its folder's name.

    Args:
        to: `hf` or `modelscope`.
        releases: what is staged.
        repo: `owner/name`; None: those of the recipe.
        private: whether a repository of Hugging Face is; one of ModelScope always is.
        endpoint: another hub than the client's own settings say.

    Raises:
        UsageError: no such hub, or a release without a repository.
        ResourceError: the package that the hub publishes is not installed.
    """
    named = {one.folder: repo or one.repo for one in releases}
    if without := [folder for folder, name in named.items() if name is None]:
        raise UsageError(f"--to {to}: no recipe says the repository of {', '.join(without)}; name one with --repo")
    if to == HUGGING_FACE.scheme:
        from flagrelease.publish.staging.huggingface import HuggingFacePlace
        from flagrelease.publish.upload.huggingface import HuggingFace

        hub = HuggingFace(endpoint)
        return {one.folder: HuggingFacePlace(hub, one, named[one.folder] or "", private) for one in releases}
    if to == MODELSCOPE.scheme:
        from flagrelease.publish.staging.modelscope import ModelScopePlace
        from flagrelease.publish.upload.modelscope import ModelScope

        if repo is not None and len(releases) > 1:
            raise UsageError(f"--repo {repo}: a repository of ModelScope has no branches; it holds one release")
        other = ModelScope(endpoint)
        return {one.folder: ModelScopePlace(other, one, f"{named[one.folder]}{STAGING_REPOSITORY}") for one in releases}
    raise UsageError(f"--to {to}: no such hub; there are {HUGGING_FACE.scheme} and {MODELSCOPE.scheme}")


def places_by_commands(hand_over: str, check: str, releases: Sequence[Staged]) -> dict[str, Place]:
    """A place that two commands speak for, for each release, by its folder's name.

    Raises:
        UsageError: a program is not there, or a command does not say which file it is about.
    """
    moving, asking = parse_commands(hand_over, check, len(releases))
    return {one.folder: CommandPlace(one, moving, asking) for one in releases}
