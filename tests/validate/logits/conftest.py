"""One source, its BF16 release and its baseline for all tests of the logits stage."""

from __future__ import annotations

import pytest
from defective_ports import RULES, convert_source, write_documents, write_source
from logits_study import Study

from flagrelease import engine
from flagrelease.validate.logits.record import record_baseline


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("logits")
    source, documents = write_source(folder / "source"), write_documents(folder / "documents.jsonl")
    release = convert_source(source, folder)
    record_baseline(source, folder / "baseline", RULES, documents=documents, device="cpu")
    return Study(source, documents, release, folder / "baseline", engine.load(release, "bf16"))
