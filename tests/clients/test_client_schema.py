"""schemathesis against /openapi.json: what the document allows and forbids is what the server takes and refuses."""

from __future__ import annotations

import pytest
from client_runs import Run

pytestmark = pytest.mark.clients

SECONDS = 60


def test_the_document_is_true(scripted: str, run: Run) -> None:
    # positive_data_acceptance is left out: the document cannot say that the prompt and the answer must fit the context
    said = run("clients", "schemathesis", "run", f"{scripted}/openapi.json", "--max-time", SECONDS, "--phases",
               "coverage,fuzzing", "--exclude-checks", "positive_data_acceptance", "--warnings", "off",
               "--seed", 7, "--no-color")  # fmt: skip
    assert "14 selected / 14 total" in said
    assert "generated" in said
