"""The converter and the second implementation, which share no code, on every kind of release and source."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.model.synthetic import Stored
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import read_source
from flagrelease.verify.ties import gather_equal
from flagrelease.verify.verify import verify_release

DSPARK = {
    "dspark_block_size": 5,
    "dspark_noise_token_id": 500,
    "dspark_target_layer_ids": [0, 1, 2],
    "dspark_markov_rank": 64,
    "compress_ratios": [0, 4, 128, 0, 0, 0],
}
SOURCES = {
    "preview": ({}, Stored()),
    "dspark": (DSPARK, Stored()),
    "base": ({"expert_dtype": "fp8"}, Stored(experts="fp8", scale_dtype="F32")),
    "scale_inv": ({}, Stored(scale_suffix=".weight_scale_inv")),
}
TARGETS = [
    "bf16:hf", "bf16:mp8", "bf16:mp16", "fp8:hf", "fp8:mp8", "native:hf", "native:mp16", "fp8-e8m0:hf",
    "fp8-bf16-wo-a:hf", "int8:hf", "int8-experts:hf", "fp8-channel:hf", "w8a8-ascend:hf", "mxfp8:hf",
]  # fmt: skip


def run(source: Path, out: Path, *targets: str, o_groups: str = "shared", **options: object) -> None:
    wanted = [parse_target(target, o_groups) for target in targets]  # type: ignore[arg-type]
    plan = make_plan(read_source(source), wanted, ConvertSpec(**options))  # type: ignore[arg-type]
    convert(plan, out, workers=2, lookup=cpu_lookup, progress=lambda done: None)


@pytest.fixture(scope="module", params=SOURCES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    changes, stored = SOURCES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    write_checkpoint(root / "source", tiny_config(**changes), stored)
    run(root / "source", root / "out", *TARGETS, lossy_repack="allow")
    return root / "source", root / "out"


@pytest.mark.parametrize("target", TARGETS)
def test_every_release_is_proved(converted: tuple[Path, Path], target: str) -> None:
    source, out = converted
    report = verify_release(out / target.replace(":", "-"), source, workers=2)
    assert {check.status for check in report.checks if check.name != "stacks"} == {"pass"}
    assert report.check("stacks").status == "not-run"  # no recipe names any
    assert report.passed


def test_layouts_of_one_model_are_tied_together(converted: tuple[Path, Path]) -> None:
    _, out = converted
    for first, second in (("bf16-hf", "bf16-mp8"), ("bf16-mp8", "bf16-mp16"), ("fp8-hf", "fp8-mp8")):
        assert gather_equal(out / first, out / second, read_bytes=True).status == "pass"


def test_a_bf16_source_is_proved_too(converted: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = converted
    run(out / "bf16-hf", tmp_path, "bf16:mp8")
    assert verify_release(tmp_path / "bf16-mp8", out / "bf16-hf").passed


def test_split_o_groups_and_parts_are_proved(converted: tuple[Path, Path], tmp_path: Path) -> None:
    source, _ = converted
    run(source, tmp_path, "native:mp16", "bf16:mp16", o_groups="split", rank_part_bytes=1_000_000)
    for folder in ("native-mp16", "bf16-mp16"):
        assert verify_release(tmp_path / folder, source).passed


def test_a_converter_that_is_wrong_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defects planted in the converter itself: manifest and files agree, only the second decoder can tell."""
    from flagrelease.convert.codecs import scales, tables
    from flagrelease.convert.codecs.decoder import Decoder
    from flagrelease.convert.planning import layouts
    from flagrelease.convert.running import makers

    source = tmp_path / "source"
    write_checkpoint(source, tiny_config())

    def swapped_nibbles(decoder: Decoder) -> tables.Tables:
        wrong = replace(decoder, values=decoder.values[:, ::-1])
        return tables.bf16_tables(wrong, scales.e8m0_values())

    def neighbouring_scale(decoder: Decoder) -> tables.Tables:
        return tables.bf16_tables(decoder, scales.e8m0_values()[[*range(1, 256), 255]])

    part = layouts._part
    for name, defect in (
        ("nibbles", lambda m: m.setattr(makers, "e8m0_tables", swapped_nibbles)),
        ("scale", lambda m: m.setattr(makers, "e8m0_tables", neighbouring_scale)),
        ("ranks", lambda m: m.setattr(layouts, "_part", lambda n, parts, i: part(n, parts, parts - 1 - i))),
    ):
        with monkeypatch.context() as patch:
            defect(patch)
            run(source, tmp_path / name, "bf16:mp8")
        report = verify_release(tmp_path / name / "bf16-mp8", source)
        assert report.check("source").status == "fail", name
        assert not report.passed


def test_left_behind_quantization_config_is_found(converted: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = converted
    shutil.copytree(out / "bf16-mp8", tmp_path / "bf16-mp8")
    path = tmp_path / "bf16-mp8" / "config.json"
    config = json.loads((source / "config.json").read_text())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config["quantization_config"]}))
    assert verify_release(tmp_path / "bf16-mp8", source).check("config").status == "fail"
