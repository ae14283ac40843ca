"""Recording: complete or not there, the same bytes after a kill, and refused where it does not belong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from defective_ports import DOCUMENTS, RULES, VOCABULARY, CalmCheckpoint
from engine_checkpoint import small_config
from logits_study import Study
from safetensors.numpy import load_file
from small_tokenizer import write_tokenizer

from flagrelease.durable.lock import FileLock
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import CheckpointError, ResourceError, UsageError, VerificationError
from flagrelease.records.manifest import ToolRecord
from flagrelease.records.rules import LogitsRules
from flagrelease.records.source_identity import SourceIdentity, identify
from flagrelease.validate.logits import files, record, stage
from flagrelease.validate.logits.baseline import (
    RECORD,
    Baseline,
    BaselineRecord,
    DocumentRecord,
    DocumentSet,
    Machine,
    open_baseline,
)
from flagrelease.validate.logits.distribution import Figures
from flagrelease.validate.logits.documents import Given, digest, tokenise
from flagrelease.validate.logits.record import record_baseline
from flagrelease.validate.logits.replay import REPLAYS, FiguresRun, ReplayResult
from flagrelease.validate.logits.stage import run_logits


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_kept_run_is_the_models_own_distribution(study: Study) -> None:
    """Document 3, longer than a step, against log-probabilities of the whole sequence at once, by torch."""
    tokens = json.loads(study.documents.read_text().splitlines()[3])["tokens"]
    logp = study.model.logits(tokens[:-1]).double().log_softmax(-1).numpy()
    kept = load_file(study.baseline / "oracle" / "0003.safetensors")
    assert kept["prefill.ids"].shape == (159, VOCABULARY)
    expected = np.take_along_axis(logp, kept["prefill.ids"].astype(np.int64), -1)
    np.testing.assert_allclose(kept["prefill.logp"], expected, atol=0.05)
    assert np.median(np.abs(kept["prefill.logp"] - expected)) < 1e-3  # steps of another length round otherwise
    assert (np.diff(kept["prefill.logp"]) <= 0).all()
    np.testing.assert_allclose(kept["prefill.target"], logp[np.arange(159), tokens[1:]], atol=0.05)
    assert kept["decode.ids"].shape == (10, VOCABULARY)
    np.testing.assert_allclose(kept["decode.target"], kept["prefill.target"][-10:], atol=0.1)


def test_the_record_says_what_was_run(study: Study) -> None:
    document = json.loads((study.baseline / RECORD).read_text())
    assert document["set"] == "own"
    assert [d["tokens"] for d in document["documents"]] == [72, 72, 72, 160, *[72] * 6]
    assert document["machine"]["operators"] == "torch"
    files = {name for name in bytes_of(study.baseline) if name != RECORD}
    assert set(document["files"]) == files
    folders = {"native", "native-layers", "oracle", "oracle-native", "oracle-layers", "floor-oracle", "floor-layers"}
    assert {name.split("/")[0] for name in files} == folders | {"documents.jsonl"}
    assert len(files) == len(folders) * DOCUMENTS + 1


class Killed(BaseException):
    """Not an error that anything could catch by mistake."""


def kill_before(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process's work when it is about to write its file of this number."""
    count, write = 0, files.write_whole

    def write_until(path: Path, data: bytes) -> None:
        nonlocal count
        if count == file:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.partial").write_bytes(data[: len(data) // 2])
            raise Killed
        count += 1
        write(path, data)

    monkeypatch.setattr(files, "write_whole", write_until)
    monkeypatch.setattr(record, "write_whole", write_until)


@pytest.mark.slow
def test_a_recording_killed_again_and_again_ends_with_the_same_bytes(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = with_replay(documents=2, tokens=20, decode_tokens=4)
    record_of(study, tmp_path / "whole", rules)
    kills = 0
    while True:
        with monkeypatch.context() as patch:
            kill_before(4, patch)
            try:
                record_of(study, tmp_path / "killed", rules)
            except Killed:
                kills += 1
            else:
                break
        with pytest.raises(VerificationError, match="recording did not finish"):
            open_baseline(tmp_path / "killed", identify(study.source), rules.replay)
    assert kills >= 3
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert record_of(study, tmp_path / "whole", rules).sha256  # complete already: nothing is run
    with pytest.raises(ResourceError, match="holds another baseline"):
        record_of(study, tmp_path / "whole", with_replay(documents=2, tokens=21, decode_tokens=4))


def test_a_folder_begun_otherwise_is_refused(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("of somebody")
    with pytest.raises(ResourceError, match="was not begun by baseline record"):
        record_of(study, tmp_path / "full", RULES)
    with monkeypatch.context() as patch:
        kill_before(1, patch)
        with pytest.raises(Killed):
            record_of(study, tmp_path / "begun", with_replay(tokens=20))
    with pytest.raises(ResourceError, match="was begun for another set of documents and another set of rules"):
        record_of(study, tmp_path / "begun", with_replay(tokens=21))


def test_a_complete_recording_loads_no_model(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loaded the native model, which takes minutes, to see that nothing was missing, or that it was another one."""
    out = shutil.copytree(study.baseline, tmp_path / "baseline")
    (out / "state").mkdir()
    (out / "state" / "lock").touch()  # killed after the record was written
    monkeypatch.setattr(record, "load", no_load)
    assert record_of(study, out, RULES).record.files
    assert bytes_of(out) == bytes_of(study.baseline)
    with pytest.raises(ResourceError, match="holds another baseline, under other rules"):
        record_of(study, out, with_replay(tokens=21))
    other = CalmCheckpoint(small_config(), seed=6).write_hf(tmp_path / "other", "native")
    with pytest.raises(ResourceError, match="holds another baseline, of another model"):
        record_baseline(other, out, RULES, documents=study.documents, device="cpu")


def no_load(*arguments: object, **more: object) -> None:
    raise AssertionError("a model was loaded")


def test_two_recordings_into_one_folder(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both wrote: neither had a lock."""
    rules, out = with_replay(documents=2, tokens=20, decode_tokens=4), tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_before(1, patch)
        with pytest.raises(Killed):
            record_of(study, out, rules)
    before = bytes_of(out)
    with (
        FileLock(out / "state" / "lock", out),
        pytest.raises(ResourceError, match="in use by another flagrelease process"),
    ):
        record_of(study, out, rules)
    assert bytes_of(out).keys() == before.keys()
    record_of(study, out, rules)


def with_replay(**changes: int) -> LogitsRules:
    return RULES.model_copy(update={"replay": RULES.replay.model_copy(update=changes)})


def record_of(study: Study, out: Path, rules: LogitsRules) -> Baseline:
    return record_baseline(study.source, out, rules, documents=study.documents, device="cpu")


def test_documents_that_do_not_fit_the_model_are_refused(study: Study, tmp_path: Path) -> None:
    """Texts for a source that has no tokenizer: the bundled ones."""
    with pytest.raises(UsageError, match="has no tokenizer"):
        record_baseline(study.source, tmp_path / "out", RULES, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_source_that_gives_no_numbers_is_refused(study: Study, tmp_path: Path) -> None:
    broken = CalmCheckpoint(small_config(), seed=5)
    broken.values["norm.weight"][7] = torch.nan
    source = broken.write_hf(tmp_path / "source", "native")
    with pytest.raises(
        CheckpointError, match="document 'document 0': the source's native run gives logits that are NaN"
    ):
        record_baseline(source, tmp_path / "out", RULES, documents=study.documents, device="cpu")


# What a port refuses of a baseline.


@pytest.fixture
def copied(study: Study, tmp_path: Path) -> Path:
    return shutil.copytree(study.baseline, tmp_path / "baseline")


def run(study: Study, baseline: Path, work: Path, rules: LogitsRules = RULES) -> None:
    run_logits(study.model, study.release, baseline, rules, work)


def test_a_baseline_of_another_model_is_refused(study: Study, tmp_path: Path) -> None:
    """The same shapes, files and config, other weights: only data tell them apart."""
    other = CalmCheckpoint(small_config(), seed=6).write_hf(tmp_path / "other", "native")
    theirs = identify(other)
    assert theirs.headers_sha256 == identify(study.source).headers_sha256
    with pytest.raises(VerificationError, match=r"another model .* the values of the tensors differ"):
        open_baseline(study.baseline, theirs, RULES.replay)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1}))
    with pytest.raises(VerificationError, match=r"another model .* config\.json differs"):
        open_baseline(study.baseline, identify(other), RULES.replay)


def test_a_release_and_its_source_are_one_model(study: Study) -> None:
    assert identify(study.release) == identify(study.source)


@pytest.mark.parametrize(("field", "value"), [("top", 100), ("tokens", 71), ("decode_tokens", 11), ("chunk", 32)])
def test_a_baseline_under_other_rules_is_refused(field: str, value: int, study: Study, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=rf"rules\.{field} is .* recorded under other rules"):
        run(study, study.baseline, tmp_path / "work", with_replay(**{field: value}))


def test_other_documents_are_refused(study: Study, copied: Path, tmp_path: Path) -> None:
    path = copied / "documents.jsonl"
    text = path.read_text().replace("document 2", "document II")
    path.write_text(text)
    with pytest.raises(VerificationError, match=r"documents\.jsonl: SHA-256 is not the one"):
        run(study, copied, tmp_path / "work")
    set_in_record(copied, "files", "documents.jsonl", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(VerificationError, match="other token ids than the baseline's"):
        run(study, copied, tmp_path / "work")


def set_in_record(baseline: Path, *keys: Any) -> None:
    document = json.loads((baseline / RECORD).read_text())
    part = document
    for key in keys[:-2]:
        part = part[key]
    part[keys[-2]] = keys[-1]
    (baseline / RECORD).write_text(json.dumps(document))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """A text, read by the source's tokenizer and by one whose ids are permuted."""
    folders = [tmp_path / name for name in ("ours", "theirs")]
    for folder in folders:
        folder.mkdir()
        write_tokenizer(folder)
    document = json.loads((folders[1] / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folders[1] / "tokenizer.json").write_text(json.dumps(document))
    ours, theirs = (Tokenizer(folder) for folder in folders)
    baseline = text_baseline(tmp_path / "baseline", ours)
    assert baseline.documents(ours, 0, 4096)[0].tokens[0] == 0
    with pytest.raises(VerificationError, match="another tokenizer"):
        baseline.documents(theirs, 0, 4096)


def text_baseline(folder: Path, encoder: Tokenizer, chosen: DocumentSet = "own") -> Baseline:
    """A baseline without runs, of one text."""
    given = Given("a", "k", "a cab, a crab")
    documents = tokenise([given], encoder, RULES.replay, 0, 4096)
    folder.mkdir()
    (folder / "documents.jsonl").write_text(given.to_json() + "\n")
    document = BaselineRecord(
        tool=ToolRecord(version="0"),
        model=SourceIdentity(headers_sha256="0" * 64, config_sha256="0" * 64, contents_blake3="0" * 64),
        machine=Machine(device="cpu", device_name="", operators="torch", ranks=1, torch="", python=""),
        set=chosen,
        documents_sha256=digest(documents),
        documents=tuple(DocumentRecord(name=d.name, kind=d.kind, tokens=len(d.tokens)) for d in documents),
        rules=RULES.replay,
        vocabulary=320,
        layers=5,
        files={"documents.jsonl": hashlib.sha256((folder / "documents.jsonl").read_bytes()).hexdigest()},
    )
    return Baseline(folder, document, "")


def test_a_bundled_set_of_another_version_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    encoder = Tokenizer(tmp_path)
    with pytest.raises(VerificationError, match="not the documents of this version"):
        text_baseline(tmp_path / "baseline", encoder, "bundled").documents(encoder, 0, 4096)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("folder", ["native", "oracle", "oracle-native", "floor-oracle"])
@pytest.mark.parametrize("how", [damage, Path.unlink])
def test_a_damaged_baseline_is_refused(
    folder: str,
    how: Callable[[Path], None],
    study: Study,
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage.Replayer, "run", without_running)
    how(copied / folder / "0000.safetensors")
    with pytest.raises(VerificationError, match=rf"{folder}/0000\.safetensors"):
        run(study, copied, tmp_path / "work")


def without_running(*args: Any, **more: Any) -> ReplayResult:
    """Figures of nothing."""
    empty = {
        "kl": np.zeros(9), "margin": np.zeros(9), "agree": np.ones(9, bool), "reference": np.zeros(9),
        "tested": np.zeros(9), "tail": np.zeros(9), "finite": np.ones(9, bool),
    }  # fmt: skip
    both: FiguresRun = {replay: Figures(**empty) for replay in REPLAYS}
    return ReplayResult(None, {"native": both, "oracle": both})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{}", "Field required"),
        (b"not json", "Invalid JSON"),
        (b"", "Invalid JSON"),
    ],
)
def test_a_record_that_is_none_is_refused(
    content: bytes, says: str, study: Study, copied: Path, tmp_path: Path
) -> None:
    (copied / RECORD).write_bytes(content)
    with pytest.raises(VerificationError, match=says):
        run(study, copied, tmp_path / "work")


def test_a_record_that_says_more_is_refused(study: Study, copied: Path, tmp_path: Path) -> None:
    set_in_record(copied, "surprise", 1)
    with pytest.raises(VerificationError, match="surprise: Extra inputs"):
        run(study, copied, tmp_path / "work")


def test_files_of_other_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0000.safetensors"
    files.write_arrays(path, {"prefill.kl": np.zeros(3)})
    with pytest.raises(VerificationError, match=r"array 'decode\.agree' is missing"):
        files.read_run(path, Figures)
    path.write_bytes(b"no header")
    with pytest.raises(VerificationError, match=str(path)):
        files.read_arrays(path)
