"""Plans: sizes to the byte, targets that are refused, documents, no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import contents, plan_of, run_plan

from flagrelease import console
from flagrelease.cli import main
from flagrelease.convert.planning.fit import card_fit, rank_bytes
from flagrelease.convert.planning.target import parse_target
from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.synthetic import Stored
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.source.source import Source, read_source

GIB = 2**30
FullSize = Callable[[str], Source]


@pytest.mark.parametrize(
    ("model", "tensors", "total"), [("flash", 69_187, 159_609_485_896), ("pro", 145_116, 864_704_792_696)]
)
def test_full_size_headers_have_the_published_totals(full_size: FullSize, model: str, tensors: int, total: int) -> None:
    source = full_size(model)
    assert (len(source.index.tensors), source.index.total_size) == (tensors, total)


@pytest.mark.parametrize(
    ("model", "tensors", "total"),
    [("flash", 35_020, 581_975_531_080), ("pro", 73_164, 3_197_868_864_632)],
)
def test_bf16_totals_are_those_of_the_facts(full_size: FullSize, model: str, tensors: int, total: int) -> None:
    (release,) = plan_of(full_size(model), "bf16:hf").releases
    assert len(release.parts) == tensors
    assert sum(part.nbytes for _, _, part in release.parts.values()) == total
    assert all(file.size <= 5 * 10**9 for file in release.files)


@pytest.mark.parametrize(
    "targets",
    [
        ["fp8:hf", "bf16:hf", "fp8:mp8", "bf16:mp16"],
        pytest.param(["bf16:mp8"], marks=pytest.mark.slow),
        pytest.param(["native:mp8", "bf16:mp16"], marks=pytest.mark.slow),
    ],
)
def test_several_targets_read_the_source_about_once(full_size: FullSize, targets: list[str]) -> None:
    plan = plan_of(full_size("flash"), *targets)
    assert plan.bytes_to_read <= 1.1 * plan.source.index.total_size


def test_what_fits_which_card(full_size: FullSize) -> None:
    """The issue's example: V4-Pro BF16 mp16 is 197 GiB a card and needs mp64 on 64 GB cards."""
    source = full_size("pro")
    fit = card_fit(source, parse_target("bf16:mp16"), 64 * GIB)
    assert round(fit.weights / GIB) == 197
    assert (fit.fits, fit.smallest_mp) == (False, 64)
    flash = full_size("flash")
    assert card_fit(flash, parse_target("bf16:mp16"), 64 * GIB).fits
    assert not card_fit(flash, parse_target("bf16:mp8"), 64 * GIB).fits


def test_rank_bytes_agree_with_the_planned_files(checkpoint: Path) -> None:
    source = read_source(checkpoint)
    for target in ("bf16:mp8", "fp8:mp16", "native:mp2"):
        plan = plan_of(checkpoint, target)
        for file in plan.files:
            assert rank_bytes(source, parse_target(target)) == file.size - len(file.header)


def test_planned_sizes_are_the_written_sizes(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_of(checkpoint, "bf16:mp8", "native:hf", "fp8:mp16")
    run_plan(plan, tmp_path)
    for release in plan.releases:
        folder = tmp_path / release.target.folder
        written = {n: len(b) for n, b in contents(folder).items() if n != "manifest.json"}
        assert {file.name: file.size for file in release.files}.items() <= written.items()
        assert sum(written.values()) == release.size


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("bf16:mp3", "n_routed_experts 16 is not divisible by 3"),
        ("bf16:mp32", "n_routed_experts 16 is not divisible by 32"),
        ("bf16:mp0", "not FORMAT:LAYOUT"),
        ("int4:hf", "not FORMAT:LAYOUT"),
        ("bf16", "not FORMAT:LAYOUT"),
        ("bf16:mp8 ", "not FORMAT:LAYOUT"),
    ],
)
def test_targets_that_cannot_be(checkpoint: Path, target: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_of(checkpoint, target)


def test_a_cut_inside_a_block_is_refused_with_the_numbers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", tiny_config(o_lora_rank=64))
    with pytest.raises(UsageError, match=r"wo_b\.weight' of \[256, 512\] would be cut at column 32, inside a block"):
        plan_of(tmp_path / "source", "fp8:mp16", o_groups="split")
    plan_of(tmp_path / "source", "bf16:mp16", o_groups="split")


def test_a_bf16_source_does_not_become_fp8(checkpoint: Path, tmp_path: Path) -> None:
    run_plan(plan_of(checkpoint, "bf16:hf"), tmp_path)
    for target in ("fp8:hf", "native:mp8"):
        with pytest.raises(UsageError, match="no quantised tensor"):
            plan_of(tmp_path / "bf16-hf", target)


def test_shared_and_split_cannot_share_a_folder(checkpoint: Path) -> None:
    from flagrelease.convert.planning.plan import make_plan
    from flagrelease.records.convert_spec import ConvertSpec

    targets = [parse_target("bf16:mp16", "shared"), parse_target("bf16:mp16", "split")]
    with pytest.raises(UsageError, match="would both be written to 'bf16-mp16'"):
        make_plan(read_source(checkpoint), targets, ConvertSpec())


def test_ragged_blocks_and_other_block_sizes(tmp_path: Path) -> None:
    import numpy as np
    import recut

    config = tiny_config(q_lora_rank=96, hidden_size=320)
    config["quantization_config"] = config["quantization_config"] | {"weight_block_size": [64, 32]}
    write_checkpoint(tmp_path / "source", config)
    run_plan(plan_of(tmp_path / "source", "bf16:hf"), tmp_path)
    source, out = recut.read_folder(tmp_path / "source"), recut.read_folder(tmp_path / "bf16-hf")
    name = "layers.0.attn.wq_a"
    assert source[f"{name}.scale"][1] == (2, 10)  # 96 rows in blocks of 64: the second is ragged
    values = recut.array(source[f"{name}.weight"]).astype(np.float32)
    scales = recut.array(source[f"{name}.scale"]).astype(np.float32)
    expected = values * np.repeat(np.repeat(scales, 64, axis=0)[:96], 32, axis=1)
    assert out[f"{name}.weight"] == recut.bf16(expected)
    with pytest.raises(UsageError, match=r"weight_block_size is \[64, 32\]"):
        plan_of(tmp_path / "source", "fp8:hf")


def test_config_says_what_the_weights_are(checkpoint: Path, tmp_path: Path) -> None:
    run_plan(plan_of(checkpoint, "bf16:mp8", "fp8:hf", "native:mp16"), tmp_path)
    source = json.loads((checkpoint / "config.json").read_text())

    def read(folder: str, name: str = "config.json") -> dict:
        return json.loads((tmp_path / folder / name).read_text())

    without = {k: v for k, v in source.items() if k not in {"quantization_config", "expert_dtype"}}
    assert read("bf16-mp8") == without | {"torch_dtype": "bfloat16"}
    assert read("fp8-hf") == source | {"expert_dtype": "fp8"}
    assert read("native-mp16") == source
    native = json.loads((checkpoint / "inference" / "config.json").read_text())
    plain = {k: v for k, v in native.items() if k not in {"dtype", "scale_fmt", "expert_dtype"}}
    assert read("bf16-mp8", "inference/config.json") == plain | {"dtype": "bf16"}
    assert read("fp8-hf", "inference/config.json") == plain | {"dtype": "fp8", "scale_fmt": "ue8m0"}
    assert read("native-mp16", "inference/config.json") == native


def test_expert_dtype_stays_where_the_source_has_it_but_for_fp8(tmp_path: Path) -> None:
    """vLLM reads it from the top level only, and takes FP8 experts for FP4 without it: there it says so twice."""
    config = tiny_config()
    del config["expert_dtype"]
    config["quantization_config"]["expert_dtype"] = "fp4"
    write_checkpoint(tmp_path / "source", config)
    run_plan(plan_of(tmp_path / "source", "fp8:hf", "native:hf"), tmp_path)
    for folder, top, inside in (("fp8-hf", "fp8", "fp8"), ("native-hf", None, "fp4")):
        written = json.loads((tmp_path / folder / "config.json").read_text())
        assert written.get("expert_dtype") == top
        assert written["quantization_config"].get("expert_dtype") == inside


def test_a_first_upload_without_expert_dtype_gets_one(tmp_path: Path) -> None:
    config = tiny_config()
    del config["expert_dtype"]
    write_checkpoint(tmp_path / "source", config)
    run_plan(plan_of(tmp_path / "source", "native:hf"), tmp_path)
    assert json.loads((tmp_path / "native-hf" / "config.json").read_text())["expert_dtype"] == "fp4"


def test_inference_config_of_the_real_flash(full_size: FullSize) -> None:
    from flagrelease.convert.planning.documents import native_config

    published = json.loads((Path(__file__).parents[1] / "golden" / "configs" / "flash-inference.json").read_text())
    assert native_config(full_size("flash"), parse_target("native:mp8")) == published


def test_every_other_file_is_carried_over(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    import shutil

    shutil.copytree(checkpoint, source)
    (source / ".cache" / "huggingface").mkdir(parents=True)
    (source / ".cache" / "huggingface" / "x.metadata").write_text("a client's own")
    (source / "figures").mkdir()
    (source / "figures" / "a.png").write_bytes(b"\x89PNG")
    (source / "COPYING").symlink_to("LICENSE")
    run_plan(plan_of(source, "bf16:mp8"), tmp_path)
    out = contents(tmp_path / "bf16-mp8")
    for name in ("encoding/encoding_dsv4.py", "LICENSE", "figures/a.png", "README.md", "generation_config.json"):
        assert out[name] == (source / name).read_bytes()
    assert out["COPYING"] == b"MIT\n"
    assert not (tmp_path / "bf16-mp8" / "COPYING").is_symlink()
    assert "model.safetensors.index.json" not in out
    assert not any(name.startswith(".") for name in out)


def test_planning_loads_neither_torch_nor_numba(checkpoint: Path) -> None:
    code = (
        "import sys; from flagrelease.cli import main; "
        f"code = main(['plan', {str(checkpoint)!r}, '--target', 'bf16:mp8']); "
        "assert code == 0, code; assert not {'torch', 'numba', 'llvmlite', 'triton'} & set(sys.modules), 'heavy import'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_stored_experts_decide_not_the_name(tmp_path: Path) -> None:
    """FP8 experts (-Base) are copied into an fp8 release, not taken for packed FP4."""
    write_checkpoint(tmp_path / "source", tiny_config(expert_dtype="fp8"), Stored(experts="fp8"))
    manifest = run_plan(plan_of(tmp_path / "source", "fp8:hf"), tmp_path)["fp8-hf"]
    assert manifest.elements.repacked == 0
    assert manifest.tensors["layers.0.ffn.experts.0.w1.weight"].dtype == "F8_E4M3"


def test_what_stays_out_is_named_by_plan_and_inspect(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `.env` with a token went into a release without a word."""
    import shutil

    from flagrelease.cli import main

    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    (source / ".env").write_text("TOKEN=1\n")
    assert main(["plan", str(source), "--target", "bf16:mp8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {".env": "a hidden file"}
    assert main(["inspect", str(source)]) == 0
    assert "left out of every release: .env (a hidden file)" in capsys.readouterr().out
    run_plan(plan_of(source, "bf16:mp8"), tmp_path)
    assert ".env" not in contents(tmp_path / "bf16-mp8")


def test_a_release_is_not_written_into_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    source = tmp_path / "bf16-mp8" / "source"
    shutil.copytree(checkpoint, source)
    plan = plan_of(source, "bf16:mp8")
    with pytest.raises(UsageError, match="lies inside the checkpoint"):
        run_plan(plan, source / "releases")
    with pytest.raises(UsageError, match="the checkpoint lies inside the release's folder"):
        run_plan(plan, tmp_path)


def test_the_manifest_of_another_release_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from flagrelease.errors import CheckpointError

    run_plan(plan_of(checkpoint, "bf16:hf"), tmp_path)
    release, source = tmp_path / "bf16-hf", tmp_path / "source"
    assert read_source(release).companions.left_out["manifest.json"].startswith("the source is a release")
    shutil.copytree(checkpoint, source)
    shutil.copy(release / "manifest.json", source)
    with pytest.raises(CheckpointError, match="the manifest of another release"):
        read_source(source)


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (["License"], "LICENSE"),  # two files of the source
        (["Encoding/x.py", "encoding/y.py"], "encoding"),  # two folders that become one
        (["Manifest.json"], "manifest.json"),  # a file of the release
        (["Model-00001-of-00001.Safetensors"], "model-00001-of-00001.safetensors"),
    ],
)
def test_names_that_differ_only_in_case_are_refused(
    checkpoint: Path, tmp_path: Path, made: list[str], other: str
) -> None:
    """They were planned, and one of the two was lost on ModelScope, macOS and Windows."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    for name in [*made, "LICENSE"]:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    first, other = sorted((made[0].split("/")[0], other))
    with pytest.raises(CheckpointError, match=f"'{first}' and '{other}', which differ only in case"):
        plan_of(source, "bf16:hf")


@pytest.mark.parametrize("terminal", [False, True])
def test_planning_says_how_many_headers_it_has_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """It was a spinner, for seconds with full-size Pro."""
    monkeypatch.setattr(console, "_PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["plan", str(checkpoint), "--target", "native:hf", "--target", "bf16:mp2"]) == 0
    said = capsys.readouterr().err
    files = len(list(checkpoint.glob("*.safetensors")))
    if terminal:
        assert "releases planned" in said
        assert "1 of 2" in said
    else:
        assert said.count("headers read: ") == files
        assert f"headers read: {files} of {files} (100%)" in said
        assert said.index("headers read: ") < said.index("releases planned: 0 of 2 (0%)")
