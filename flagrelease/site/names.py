"""File names of pages, made from names in records, which may hold anything."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 60
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def page_name(*parts: str) -> str:
    """A file name for `parts`, the same every time; names that are not plain and short get a digest of the whole.

    So two different tuples of parts never share a name on a file system that tells upper from lower case, and a part
    cannot lead out of its folder.
    """
    text = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-.") or "x" for part in parts)
    plain = all(_PLAIN.fullmatch(part) and "--" not in part and not part.endswith((".", "-")) for part in parts)
    if plain and len(text) <= _LONGEST and len(parts) == 1:
        return text
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{text[:_LONGEST]}-{digest}"
