"""`drafts: drop`: releases without the draft stages, from the preview's MTP and from DSpark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flagrelease.cli import main
from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.request import make_request
from flagrelease.convert.running.conversion import convert
from flagrelease.errors import UsageError
from flagrelease.model.v4.config import native_arguments, parse_config
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.manifest import read_manifest
from flagrelease.source.source import read_source
from flagrelease.verify.ties import gather_equal
from flagrelease.verify.verify import verify_release

DSPARK = {
    "dspark_block_size": 5, "dspark_noise_token_id": 500, "dspark_target_layer_ids": [0, 1, 2],
    "dspark_markov_rank": 64, "compress_ratios": [0, 4, 128, 0, 0, 0],
}  # fmt: skip
TARGETS = ("native:hf", "bf16:mp8", "fp8:hf", "int8:hf")
DROPPED = {"dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids", "dspark_markov_rank"}


def make(source: Path, out: Path, drafts: str) -> None:
    targets = [parse_target(target, drafts=drafts) for target in TARGETS]  # type: ignore[arg-type]
    plan = make_plan(read_source(source), targets, ConvertSpec(lossy_repack="allow"))
    convert(plan, out, workers=2, lookup=cpu_lookup, progress=lambda done: None)


@pytest.fixture(scope="module", params=["preview", "dspark"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    raw = tiny_config(**(DSPARK if request.param == "dspark" else {}))
    write_checkpoint(root / "source", raw)
    native = native_arguments(parse_config(raw, "test")) | {"dtype": "fp8"}
    (root / "source" / "inference").mkdir(exist_ok=True)
    (root / "source" / "inference" / "config.json").write_text(json.dumps(native))
    for drafts in ("keep", "drop"):
        make(root / "source", root / drafts, drafts)
    return root


def config_of(release: Path, name: str = "config.json") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((release / name).read_text())
    return document


@pytest.mark.parametrize("folder", [target.replace(":", "-") for target in TARGETS])
def test_what_is_left_is_what_it_was(made: Path, folder: str) -> None:
    kept, dropped = read_manifest(made / "keep" / folder), read_manifest(made / "drop" / folder)
    assert any(name.startswith("mtp.") for name in kept.tensors)
    assert dropped.tensors == {name: one for name, one in kept.tensors.items() if not name.startswith("mtp.")}
    assert dropped.source.identity == kept.source.identity
    assert not any(name.startswith("mtp.") for name in dropped.source.tensors)


@pytest.mark.parametrize("folder", [target.replace(":", "-") for target in TARGETS])
def test_its_configs_name_no_stage(made: Path, folder: str) -> None:
    kept, dropped = config_of(made / "keep" / folder), config_of(made / "drop" / folder)
    for key in ("compress_ratios", "num_nextn_predict_layers", "quantization_config"):
        kept.pop(key, None)
        dropped.pop(key, None)
    assert dropped == {key: value for key, value in kept.items() if key not in DROPPED}
    config = config_of(made / "drop" / folder)
    assert (config["compress_ratios"], config["num_nextn_predict_layers"]) == ([0, 4, 128], 0)
    if folder == "bf16-mp8":
        native = config_of(made / "drop" / folder, "inference/config.json")
        assert (native["n_mtp_layers"], native["compress_ratios"]) == (0, [0, 4, 128])
        assert not DROPPED & native.keys()


@pytest.mark.parametrize("folder", [target.replace(":", "-") for target in TARGETS])
def test_it_is_proved_against_the_whole_source(made: Path, folder: str) -> None:
    report = verify_release(made / "drop" / folder, made / "source", workers=2)
    assert {check.name: check.status for check in report.checks if check.status != "pass"} == {"stacks": "not-run"}


@pytest.mark.parametrize("claim", ["keep", "drop"])
def test_a_release_that_is_not_what_its_manifest_says_is_found(made: Path, claim: str, tmp_path: Path) -> None:
    """Stages that are missing where they were to be kept, and the other way round."""
    other = {"keep": "drop", "drop": "keep"}[claim]
    release = tmp_path / "release"
    shutil.copytree(made / other / "native-hf", release)
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["target"]["drafts"] = claim
    (release / "manifest.json").write_text(json.dumps(manifest))
    report = verify_release(release, made / "source", workers=2)
    findings = [f.rule for f in report.check("config").findings if "num_nextn_predict_layers" in f.rule]
    wanted = {"keep": (0, 1), "drop": (1, 0)}[claim]
    assert findings == [f"num_nextn_predict_layers is {wanted[0]}, the source says {wanted[1]}"]


def test_one_pass_makes_releases_with_and_without_them(made: Path, tmp_path: Path) -> None:
    source = read_source(made / "source")
    targets = [parse_target("native:hf", drafts="drop"), parse_target("bf16:mp8")]
    plan = make_plan(source, targets, ConvertSpec())
    convert(plan, tmp_path, workers=2, lookup=cpu_lookup, progress=lambda done: None)
    for drafts, folder in (("drop", "native-hf"), ("keep", "bf16-mp8")):
        mine, alone = read_manifest(tmp_path / folder), read_manifest(made / drafts / folder)
        assert (mine.tensors, mine.files) == (alone.tensors, alone.files)
    least = make_plan(source, [parse_target("bf16:mp8", drafts="drop")], ConvertSpec())
    assert least.bytes_to_read < plan.bytes_to_read


@pytest.mark.parametrize("read_bytes", [False, True])
def test_releases_with_and_without_them_are_told_apart(made: Path, read_bytes: bool) -> None:
    """They were said to name different sources."""
    check = gather_equal(made / "keep" / "bf16-mp8", made / "drop" / "bf16-mp8", read_bytes)
    assert [f.rule for f in check.findings] == ["one release keeps the draft stages of the model, the other drops them"]


def test_both_would_be_one_folder(made: Path) -> None:
    targets = [parse_target("native:hf"), parse_target("native:hf", drafts="drop")]
    with pytest.raises(UsageError, match="draft stages would both be written to 'native-hf'"):
        make_plan(read_source(made / "source"), targets, ConvertSpec())


def test_a_recipe_and_the_command_line_choose(made: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "schema_version: 1\nmodel: small\nsource: {repo: a/b, revision: main, license: MIT}\nreleases:\n"
        "  nvidia:\n    - {format: fp8, layout: hf, drafts: drop}\n    - {format: native, layout: hf}\n"
    )

    def chosen(**options: Any) -> list[tuple[str, str]]:
        request = make_request(recipe, made / "source", [], [], None, **options)
        return [(str(target), target.drafts) for target in request.targets]

    assert chosen() == [("fp8:hf", "drop"), ("native:hf", "keep")]
    assert chosen(drafts="drop") == [("fp8:hf", "drop"), ("native:hf", "drop")]
    assert chosen(drafts="keep") == [("fp8:hf", "keep"), ("native:hf", "keep")]
    bare = make_request(made / "source", None, ["bf16:mp2"], ["mthreads"], None, drafts="drop")
    assert {target.drafts for target in bare.targets} == {"drop"}


def test_a_plan_says_that_they_are_left_out(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the bytes told it."""
    words = ["plan", str(made / "source"), "--target", "bf16:mp2", "--drafts"]
    for drafts in ("keep", "drop"):
        assert main([*words, drafts, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["releases"][0]["drafts"] == drafts
        assert main([*words, drafts]) == 0
        assert ("bf16-mp2 leaves out the draft stages" in " ".join(capsys.readouterr().out.split())) == (
            drafts == "drop"
        )
