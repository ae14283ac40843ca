"""`ComparedPair`: a page of the site that compares two releases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """One comparison.

    Attributes:
        title: which releases.
        page: its place below the root of the site.
        summary: one sentence.
        configs: JSON files and tokenizers that differ.
    """

    title: str
    page: str
    summary: str
    configs: tuple[str, ...]
