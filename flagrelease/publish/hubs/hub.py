"""`Hub`: the facts of one hub, from its documentation and its client (docs/publishing.md). Each hub fills in one.

The facts stand low in the package, so that a conversion's plan can ask them. The code that talks to a hub is named here
(`client`) and loaded only when somebody talks to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagrelease.errors import UsageError


@dataclass(frozen=True, slots=True)
class HubLimits:
    """What a repository may hold. None: the hub says nothing.

    Attributes:
        file_bytes: the hub refuses a longer file.
        advised_file_bytes: the hub takes a longer file, but advises against it.
        repo_files: files of a repository.
        folder_entries: files of one folder.
        commit_files: files of a publication, where the hub takes it in one commit.
        inline_bytes: bytes of all files that are not LFS.
    """

    file_bytes: int
    advised_file_bytes: int
    repo_files: int
    folder_entries: int
    commit_files: int | None = None
    inline_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CardRules:
    """The metadata that a hub reads from the top of a card.

    Attributes:
        fields: all fields, in the order in which they are written.
        optional: those that a card may lack.
        fixed: fields that are the same on every card.
    """

    fields: tuple[str, ...]
    optional: frozenset[str]
    fixed: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hub:
    """One hub.

    Attributes:
        name: what recipes, plans and messages call it.
        scheme: what commands and addresses call it: `--to hf`, `hf://owner/name@tag`.
        licences: SPDX id -> how the hub spells the licence. A release with another licence is not published there.
        documents: files that only this hub reads, path -> content; their names are in `names.WRITTEN_NAMES`.
        download: the command that downloads a repository; {repo} and {folder} stand for its two words.
        reader: `module:class` of its `reading.remote.HubReader`.
        client: `module:class` of its `upload.client.HubClient`.
        package: the distribution that the client needs.
        token: what the hub's tokens look like, a regular expression.
        login: what a user does so that the client has one.
        commits: how many commits files (path, bytes) make in an empty repository.
        is_inline: whether a file (path, bytes) is sent inside a commit; None where the hub decides that itself.
    """

    name: str
    scheme: str
    limits: HubLimits
    licences: Mapping[str, str]
    card: CardRules
    documents: Mapping[str, bytes]
    download: str
    reader: str
    client: str
    package: str
    token: str
    login: str
    commits: Callable[[Sequence[tuple[str, int]]], int]
    is_inline: Callable[[str, int], bool] | None = None

    def licence(self, spdx: str) -> str:
        """How the hub spells a licence.

        Raises:
            UsageError: its spelling is not known.
        """
        if (spelling := self.licences.get(spdx)) is None:
            raise UsageError(f"licence {spdx} has no known spelling on {self.name} ({', '.join(self.licences)})")
        return spelling
