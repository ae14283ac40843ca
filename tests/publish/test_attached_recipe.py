"""A release that was converted without a recipe: refused first, and published with a recipe that gives its bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from publish_release import RECIPES, Converted, write_report

from flagrelease.cli import main
from flagrelease.publish.publish import publish
from flagrelease.records.manifest import read_manifest
from flagrelease.verify.verify import verify_release


@pytest.fixture(scope="module")
def bare(converted: Converted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `convert --target` makes of the same checkpoint."""
    out = tmp_path_factory.mktemp("bare")
    assert main(["convert", str(converted.source), "--target", "fp8:mp8", "--out", str(out)]) == 0
    return out / "fp8-mp8"


def recipe_with(folder: Path, **changes: object) -> Path:
    document = yaml.safe_load((RECIPES / "tiny.yaml").read_text()) | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def words(release: Path, to: Path, *more: str) -> list[str]:
    return ["publish", str(release), "--chip", "nvidia", "--to", str(to), "--allow-unvalidated", "--yes", *more]


def test_without_a_recipe_it_is_refused_before_anything_else(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, the report was asked for first: the refusal came after hours of validation."""
    command = ["publish", str(bare), "--chip", "nvidia", "--to", str(tmp_path / "out")]
    assert main(command) == 2
    assert "Attach the recipe that gives the same bytes (--recipe FILE)" in capsys.readouterr().err


def test_with_its_recipe_it_is_published_and_checked_like_any_other(
    bare: Path, converted: Converted, tmp_path: Path
) -> None:
    assert read_manifest(bare).recipe is None
    out = tmp_path / "out"
    report = write_report(bare, tmp_path / "report.json")
    recipe = RECIPES / "tiny.yaml"
    assert main(words(bare, out, "--recipe", str(recipe), "--report", str(report))) == 0
    assert (out / "manifest.json").read_bytes() == (bare / "manifest.json").read_bytes()  # so the report still fits it
    assert verify_release(out, converted.source).passed
    card = (out / "README.md").read_text()
    source = yaml.safe_load(recipe.read_text())["source"]
    assert f"`{source['repo']}` at revision `{source['revision']}`" in card
    assert "the recipe is in `provenance.intoto.json`, attached afterwards" in card
    statement = json.loads((out / "provenance.intoto.json").read_bytes())
    attached = statement["predicate"]["buildDefinition"]["externalParameters"]["recipe"]
    assert attached == read_manifest(converted.release).recipe  # as a conversion from the recipe would have recorded it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convert": {"rank_part_bytes": 1000}}, "the recipe has convert.rank_part_bytes 1000"),
        ({"releases": {"nvidia": {"dtype": "bf16", "layout": "mp8"}}}, "this release is fp8-mp8"),
        ({"releases": {"nvidia": {"dtype": "fp8", "layout": "mp4"}}}, "the recipe gives nvidia fp8-mp4"),
        ({"releases": {"ascend": {"dtype": "fp8", "layout": "mp8"}}}, "chip 'nvidia' is not in the release's recipe"),
        (
            {"releases": {"nvidia": {"dtype": "fp8", "layout": "mp8", "drafts": "drop"}}},
            "the recipe gives nvidia drafts drop; this release has keep",
        ),
    ],
    ids=["options", "dtype", "layout", "chip", "drafts"],
)
def test_a_recipe_that_gives_other_bytes_is_refused(
    bare: Path, tmp_path: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_with(tmp_path, **changes)
    assert main(words(bare, tmp_path / "out", "--recipe", str(recipe))) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_that_change_no_byte_of_this_release_may_differ(bare: Path, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in bare.glob("*.safetensors"))
    options = {
        "max_file_bytes": 1000,
        "rank_part_bytes": largest,
        "lossy_repack": "allow",
    }  # an mp release without loss
    recipe = recipe_with(tmp_path, convert=options)
    assert main(words(bare, tmp_path / "out", "--recipe", str(recipe))) == 0
    cut = recipe_with(tmp_path, convert=options | {"rank_part_bytes": largest - 1})
    assert main(words(bare, tmp_path / "cut", "--recipe", str(cut))) == 2


def test_a_release_with_a_recipe_takes_no_other(
    converted: Converted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = recipe_with(tmp_path, model="Another")
    assert main(words(converted.release, tmp_path / "out", "--recipe", str(other))) == 2
    assert "was converted from another recipe" in capsys.readouterr().err
    assert main(words(converted.release, tmp_path / "out", "--recipe", str(RECIPES / "tiny.yaml"))) == 0


def test_a_statement_whose_attached_recipe_was_changed_is_found(bare: Path, tmp_path: Path) -> None:
    publish(bare, "nvidia", str(tmp_path / "out"), allow_unvalidated=True, yes=True, recipe=RECIPES / "tiny.yaml")
    path = tmp_path / "out" / "provenance.intoto.json"
    document = json.loads(path.read_bytes())
    recipe = document["predicate"]["buildDefinition"]["externalParameters"]["recipe"]
    recipe["releases"]["nvidia"][1]["layout"] = "mp4"
    path.write_bytes(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    said = [str(finding) for finding in verify_release(tmp_path / "out").check("files").findings]
    assert any("the recipe gives nvidia fp8-hf and fp8-mp4; this release is fp8-mp8" in line for line in said)
