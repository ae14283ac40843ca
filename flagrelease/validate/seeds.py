"""The seed of one sampled answer, from what it is an answer to: the same on every machine and in every version."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """31 bits, which every server takes: the first of SHA-256 over the parts as text, a line each."""
    text = "\n".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
