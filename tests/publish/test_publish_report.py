"""The data contract with validation: what is refused, and that nothing else is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from publish_release import report_for, write_report

from flagrelease.chips.table import get_chip
from flagrelease.errors import FlagReleaseError, UsageError, VerificationError
from flagrelease.publish.records import read_records
from flagrelease.records.report import parse_report


def test_a_passing_report_is_read(release: Path, report: Path) -> None:
    records = read_records(release, get_chip("nvidia"), report, allow_unvalidated=False)
    assert records.report is not None
    assert records.report.benchmarks[0].n == 198
    assert records.report_bytes == report.read_bytes()
    assert records.manifest_sha256 == hashlib.sha256((release / "manifest.json").read_bytes()).hexdigest()
    assert (records.layout, records.cards, records.nodes) == ("mp8", 8, 1)


@pytest.mark.parametrize("verdict", ["fail", "cannot-tell"])
def test_another_verdict_is_refused(release: Path, tmp_path: Path, verdict: str) -> None:
    stages = report_for(b"", "nvidia")["stages"]
    stages[0]["verdict"] = verdict
    path = write_report(release, tmp_path / "r.json", verdict=verdict, stages=stages)
    with pytest.raises(VerificationError, match=f"verdict is '{verdict}'"):
        read_records(release, get_chip("nvidia"), path, allow_unvalidated=False)
    with pytest.raises(VerificationError, match="verdict"):  # allowed is having none, not having a bad one
        read_records(release, get_chip("nvidia"), path, allow_unvalidated=True)


def test_a_report_of_another_manifest_or_chip_is_refused(release: Path, report: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="is of chip 'mthreads'"):
        read_records(release, get_chip("nvidia"), write_report(release, tmp_path / "m.json", "mthreads"), False)
    manifest = release / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"copied": 1000', b'"copied": 1001'))
    with pytest.raises(VerificationError, match="changed since"):
        read_records(release, get_chip("nvidia"), report, allow_unvalidated=False)


NO_SOURCE = {"checks": [{"name": "tensors", "status": "pass"}, {"name": "source", "status": "not-run"}]}


def without_a_proof(kind: str) -> dict[str, Any]:
    """What passes by its own rules, but had no source, or no weights stage."""
    document = report_for(b"", "nvidia")
    if kind == "no source":
        document["stages"][1]["figures"] = NO_SOURCE
    elif kind == "no figures":
        document["stages"][1]["figures"] = {}
    elif kind == "weights not run":
        document["rules"]["stages"], document["stages"][1]["verdict"] = ["integrity"], "not-run"
    else:
        document["rules"]["stages"], document["stages"] = ["integrity"], document["stages"][:1]
    return {key: document[key] for key in ("rules", "stages")}


@pytest.mark.parametrize("kind", ["no source", "no figures", "weights not run", "no weights stage"])
def test_weights_that_were_not_compared_with_the_source_need_to_be_allowed(
    release: Path, tmp_path: Path, kind: str
) -> None:
    path = write_report(release, tmp_path / "r.json", **without_a_proof(kind))
    for allow_unvalidated in (False, True):
        with pytest.raises(VerificationError, match="without comparing the weights with their source"):
            read_records(release, get_chip("nvidia"), path, allow_unvalidated)
    records = read_records(release, get_chip("nvidia"), path, False, allow_unproved_weights=True)
    assert (records.report is not None, records.weights_proved) == (True, False)


SECOND = {"schema_version": 2, "computed_on": [], "scope": {"until": None, "verdict": "pass"}}


def test_both_versions_are_published(release: Path, tmp_path: Path) -> None:
    """Version 1 has no place for what computed the figures; its environment is shown."""
    for number, changes in enumerate(({}, SECOND)):
        path = write_report(release, tmp_path / f"{number}.json", **changes)
        records = read_records(release, get_chip("nvidia"), path, allow_unvalidated=False)
        assert records.report is not None
        assert records.report.asked_verdict == "pass"
    assert parse_report((tmp_path / "0.json").read_bytes(), "r").computed_where == "computed on one of the chip"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"computed_on": []}, "computed_on belongs to version 2"),
        (SECOND | {"scope": None}, "scope belongs to version 2"),
        (SECOND | {"scope": {"until": "weights", "verdict": "fail"}}, "the verdict on what was asked is fail"),
        (SECOND | {"scope": {"until": "logits", "verdict": "pass"}}, "its stages say cannot-tell"),
        (SECOND | {"computed_on": [{"by": "oracle"}]}, "computed_on"),
    ],
)
def test_a_report_of_either_version_has_what_that_version_has(
    release: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write_report(release, tmp_path / "r.json", **changes)
    with pytest.raises(VerificationError, match=said):
        read_records(release, get_chip("nvidia"), path, allow_unvalidated=False)


def test_no_report_needs_to_be_allowed(release: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no report"):
        read_records(release, get_chip("nvidia"), None, allow_unvalidated=False)
    with pytest.raises(VerificationError, match="no report"):
        read_records(release, get_chip("nvidia"), tmp_path / "absent.json", allow_unvalidated=True)
    assert read_records(release, get_chip("nvidia"), None, allow_unvalidated=True).report is None


def _broken(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> bytes:
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("surprise",), 1, "surprise"),
        (("stages",), [], "stages"),
        (("stages", 0, "verdict"), "fail", "stages and benchmarks say fail"),
        (("stages", 1, "verdict"), "not-run", "stages and benchmarks say cannot-tell"),
        (("stages", 0, "name"), "another", "stages.0.name"),
        (("rules", "stages"), ["integrity", "logits"], "stages and benchmarks say cannot-tell"),
        (("benchmarks", 0, "verdict"), "fail", "stages and benchmarks say fail"),
        (("benchmarks", 0, "verdict"), "cannot-tell", "stages and benchmarks say cannot-tell"),
        (("benchmarks", 0, "n"), "198", "benchmarks.0.n"),
        (("benchmarks", 0, "n"), 0, "benchmarks.0.n"),
        (("benchmarks", 0, "chip", "low"), 71.0, "not inside its interval"),
        (("benchmarks", 0, "native"), None, "together"),
        (("manifest_sha256",), "abc", "manifest_sha256"),
    ],
)
def test_what_breaks_the_contract_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        parse_report(_broken(report_for(b"m", "nvidia"), path, value), "report.json")


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"report\.json"):
        parse_report(b"{", "report.json")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda folder: (folder / "LICENSE").unlink(), VerificationError, "not there"),
        (lambda folder: (folder / "LICENSE").write_bytes(b"MIT"), VerificationError, "the manifest says 12"),
        (lambda folder: (folder / "manifest.json").unlink(), VerificationError, "did not finish"),
    ],
)
def test_a_damaged_release_is_refused(release: Path, damage: Any, kind: type[FlagReleaseError], message: str) -> None:
    damage(release)
    with pytest.raises(kind, match=message):
        read_records(release, get_chip("nvidia"), None, allow_unvalidated=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"license": "MIT"', b'"license": null', "license is null|recipe.source.license"),
        (b'"license": "MIT"', b'"license": "WTFPL"', "no known spelling"),
        (b'"dtype": "fp8",\n  "layout": "mp"', b'"dtype": "bf16",\n  "layout": "mp"', "this release is bf16-mp8"),
        (b'"nvidia": [', b'"kunlunxin": [', "not in the release's recipe|appears|kunlunxin"),
    ],
)
def test_records_that_contradict_each_other_are_refused(release: Path, old: bytes, new: bytes, message: str) -> None:
    manifest = release / "manifest.json"
    changed = manifest.read_bytes().replace(old, new)
    assert changed != manifest.read_bytes()
    manifest.write_bytes(changed)
    with pytest.raises((UsageError, VerificationError), match=message):
        read_records(release, get_chip("nvidia"), None, allow_unvalidated=True)


def test_a_release_without_a_recipe_is_refused(release: Path) -> None:
    manifest = release / "manifest.json"
    document = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps(document | {"recipe": None}))
    with pytest.raises(UsageError, match="recipe is null"):
        read_records(release, get_chip("nvidia"), None, allow_unvalidated=True)
