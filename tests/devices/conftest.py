"""The chip table with the example's ninth row in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagrelease.chips import table
from flagrelease.chips.table import load_chips, parse_chips

ROW = yaml.safe_load((Path(__file__).parents[2] / "examples/ninth-chip/chip.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def nine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table with the example's row in it, as its text says it."""

    def with_the_row(text: str) -> dict[str, Any]:
        document = yaml.safe_load(text)
        document["sources"] |= ROW["sources"]
        document["chips"] |= ROW["chip"]
        return parse_chips(yaml.safe_dump(document, sort_keys=False))

    monkeypatch.setattr(table, "parse_chips", with_the_row)
    load_chips.cache_clear()
    yield
    load_chips.cache_clear()
