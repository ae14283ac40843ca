"""What the two hubs take: limits in bytes and files, from their documentation and clients (docs/publishing.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Hub = Literal["huggingface", "modelscope"]
# What commands and addresses call them: `--to hf`, `hf://owner/name@tag`.
HUBS: dict[str, Hub] = {"hf": "huggingface", "modelscope": "modelscope"}


@dataclass(frozen=True, slots=True)
class HubLimits:
    """What a repository may hold.

    Attributes:
        file_bytes: a longer file is refused by the hub.
        advised_file_bytes: a longer file is taken, but advised against.
        commit_files: of one commit. Hugging Face: LFS files; ModelScope: what its client puts into one request.
        inline_bytes: of all files that are not LFS; None where nothing is said of them.
    """

    file_bytes: int
    advised_file_bytes: int
    repo_files: int
    folder_entries: int
    commit_files: int
    inline_bytes: int | None


HUB_LIMITS: dict[Hub, HubLimits] = {
    "huggingface": HubLimits(500 * 10**9, 200 * 10**9, 100_000, 10_000, 25_000, None),
    "modelscope": HubLimits(100 * 10**9, 100 * 10**9, 100_000, 50_000, 256, 500 * 10**6),
}
# Largest file a hub takes, in bytes.
HUB_FILE_LIMITS: dict[str, int] = {hub: limits.file_bytes for hub, limits in HUB_LIMITS.items()}
