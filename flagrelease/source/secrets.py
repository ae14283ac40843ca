"""Tokens and keys that were left in a text file, found before the file goes into a release.

Only shapes that their issuers give to nothing else: a release is not refused because of a word that looks random.
"""

from __future__ import annotations

import re

# kind -> its shape. The lengths are the issuers' own minimum, so that examples such as `hf_xxx` are not taken for one.
_SHAPES = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}\b",
    "a ModelScope token": rb"\bms-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}\b",
    "an AWS access key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "an Alibaba Cloud access key": rb"\bLTAI[A-Za-z0-9]{16,26}\b",
    "an API key of the form sk-...": rb"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}\b",
    "a private key": rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----",
    "a password in an address": rb"(?<=://)[^\s/@:\"'<>{}$]+:[^\s/@:\"'<>{}$]+(?=@)",
}
_ANY = re.compile(b"|".join(b"(?P<s%d>%s)" % (number, shape) for number, shape in enumerate(_SHAPES.values())))
_KINDS = tuple(_SHAPES)


def find_secret(content: bytes) -> tuple[int, str] | None:
    """The line (from 1) and the kind of the first secret in a text; None if there is none, or if it is no text.

    The secret itself is not returned, so that no message can show it.
    """
    if b"\0" in content:
        return None
    found = _ANY.search(content)
    if found is None or found.lastgroup is None:
        return None
    return content.count(b"\n", 0, found.start()) + 1, _KINDS[int(found.lastgroup[1:])]
