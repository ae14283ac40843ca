"""The sign of each verdict: pictures and lists can be read without telling colours apart."""

from __future__ import annotations

SIGNS = {"pass": "✓", "fail": "✗", "cannot-tell": "?", "not-informative": "∅", "not-run": "–"}
