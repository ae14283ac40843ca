"""A release must hold exactly the expected tensors; whatever is wrong is named."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_checkpoint import Checkpoint, Form, random_tokens, small_config
from ranks import write_mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from flagrelease import engine
from flagrelease.device import open_device
from flagrelease.engine.intake import Intake
from flagrelease.engine.parallel import Groups
from flagrelease.engine.release import Release, find_layout
from flagrelease.errors import CheckpointError, FlagReleaseError, UsageError
from flagrelease.model.v4.config import parse_config

CPU = open_device("cpu")

Edit = Callable[[dict[str, Tensor]], None]


def edited(checkpoint: Checkpoint, folder: Path, form: Form, edit: Edit) -> Path:
    """A release of one file whose tensors were changed after writing."""
    checkpoint.write_hf(folder, form, files=1)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(tensors, file.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def put(name: str, make: Callable[[Tensor], Tensor]) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name] = make(tensors[name]).contiguous()

    return edit


def drop(name: str) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return edit


def add(name: str) -> Edit:
    return lambda tensors: tensors.update({name: torch.zeros(1)})


WQ_A, W1 = "layers.0.attn.wq_a", "layers.1.ffn.experts.3.w1"


@pytest.mark.parametrize(
    ("form", "edit", "said"),
    [
        ("bf16", drop("layers.2.attn.kv_norm.weight"), "layers.2.attn.kv_norm.weight' of this model is in no file"),
        ("bf16", drop("layers.1.ffn.experts.7.w2.weight"), "layers.1.ffn.experts.7.w2.weight' of this model is in no"),
        ("bf16", drop("mtp.0.enorm.weight"), "mtp.0.enorm.weight' of this model is in no file"),
        ("native", drop(f"{WQ_A}.scale"), f"{WQ_A}.scale' is in no file"),
        ("bf16", add("layers.0.attn.wq_c.weight"), "layers.0.attn.wq_c.weight' is not part of this model"),
        ("bf16", add("layers.1.ffn.experts.8.w1.weight"), "layers.1.ffn.experts.8.w1.weight' is not part"),
        ("bf16", add(f"{WQ_A}.scale"), rf"BF16 has a scale \('{WQ_A}.scale'\)"),
        ("bf16", put(f"{WQ_A}.weight", Tensor.float), f"{WQ_A}.weight': stored as F32; BF16 or"),
        ("bf16", put("layers.0.hc_attn_fn", Tensor.bfloat16), "layers.0.hc_attn_fn': stored as BF16; this tensor is"),
        ("native", put(f"{WQ_A}.weight", Tensor.bfloat16), f"{WQ_A}.weight': BF16 has a scale"),
        ("native", put(f"{W1}.weight", lambda x: x.view(torch.int32)), f"{W1}.weight': I32 has a scale"),
        ("native", put(f"{W1}.scale", lambda x: x.view(torch.uint8)), f"{W1}.scale': dtype U8; fp4 has scales"),
        ("bf16", put(f"{WQ_A}.weight", lambda x: x[:-1]), r"shape \[127, 128\]; config.json gives \[128, 128\]"),
        ("native", put(f"{W1}.scale", lambda x: x[:, :2]), rf"{W1}.scale': shape \[128, 2\]; .* has \[128, 4\]"),
        ("native", put(f"{WQ_A}.scale", lambda x: x.float().repeat(2, 1)), r"shape \[2, 1\]; fp8 .* has \[1, 1\]"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_named(checkpoint: Checkpoint, tmp_path: Path, form: Form, edit: Edit, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        engine.load(edited(checkpoint, tmp_path, form, edit), "bf16")


def test_experts_are_all_of_one_kind(tmp_path: Path) -> None:
    config = small_config()
    fp4, fp8 = Checkpoint(config), Checkpoint(config, expert_form="fp8")

    def edit(tensors: dict[str, Tensor]) -> None:
        tensors.update({n: t for n, t in fp8.stored("native").items() if n.startswith(W1)})

    folder = edited(fp4, tmp_path, "native", edit)
    document = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=rf"several formats: fp4 \(.*\), fp8 \('{W1}.weight' in model-"):
        engine.load(folder, "native")
    del document["expert_dtype"]  # as in the first upload: then the stored dtype decides, for all alike
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=rf"several formats: fp4 \(.*\), fp8 \('{W1}.weight' in model-"):
        engine.load(folder, "native")


def test_float32_scales_are_the_same_numbers(checkpoint: Checkpoint, native_release: Path, tmp_path: Path) -> None:
    # as the -Base releases store them
    def edit(tensors: dict[str, Tensor]) -> None:
        scales = {n: t for n, t in tensors.items() if t.dtype == torch.float8_e8m0fnu and ".experts." not in n}
        tensors.update({n: t.float() for n, t in scales.items()})

    base = engine.load(edited(checkpoint, tmp_path, "native", edit), "native")
    tokens = random_tokens(40)
    assert torch.equal(base.logits(tokens), engine.load(native_release, "native").logits(tokens))


def test_exact_weights_in_every_release(
    checkpoint: Checkpoint, bf16_release: Path, native_release: Path, tmp_path: Path
) -> None:
    # bf16 numerics decode; the same numbers must come out of every form.
    tokens = random_tokens(200)
    expected = engine.load(bf16_release, "bf16").logits(tokens)
    assert torch.equal(engine.load(native_release, "bf16").logits(tokens), expected)
    mp1 = write_mp(checkpoint, tmp_path / "mp1", "native", 1, parts=3)
    assert torch.equal(engine.load(mp1, "bf16").logits(tokens), expected)


def test_native_numerics_of_decoded_weights(bf16_release: Path, native_release: Path) -> None:
    # The BF16 release holds the native numbers; with activations rounded natively it computes the native result.
    tokens = random_tokens(200)
    native, decoded = engine.load(native_release, "native"), engine.load(bf16_release, "native")
    assert torch.equal(native.logits(tokens), decoded.logits(tokens))
    # ... which is not what bf16 numerics compute
    assert (native.logits(tokens) - engine.load(bf16_release, "bf16").logits(tokens)).abs().mean() > 0.1


def test_fp8_experts(tmp_path: Path) -> None:
    checkpoint = Checkpoint(small_config(), expert_form="fp8")
    fp8, bf16 = checkpoint.write_hf(tmp_path / "fp8", "fp8"), checkpoint.write_hf(tmp_path / "bf16", "bf16")
    tokens = random_tokens(200)
    assert torch.equal(engine.load(fp8, "fp8").logits(tokens), engine.load(bf16, "fp8").logits(tokens))
    assert torch.equal(engine.load(fp8, "bf16").logits(tokens), engine.load(bf16, "bf16").logits(tokens))


def test_fp8_numerics_use_no_fp4(native_release: Path) -> None:
    with pytest.raises(UsageError, match=r"experts\.0\.w1\.weight' is FP4, which numerics 'fp8' does not use"):
        engine.load(native_release, "fp8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"numerics": "int8"}, "int8"),
        ({"numerics": "native", "dtype": torch.float32}, "torch.bfloat16"),
        ({"numerics": "bf16", "dtype": torch.float16}, "float16"),
        ({"operators": "magic"}, "magic"),
    ],
)
def test_choices_that_do_not_exist(bf16_release: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        engine.load(bf16_release, **arguments)


@pytest.mark.parametrize(("ranks", "o_mode"), [(2, "shared"), (4, "shared"), (4, "split")])
def test_layout_is_found_by_shapes(checkpoint: Checkpoint, tmp_path: Path, ranks: int, o_mode: Any) -> None:
    folder = write_mp(checkpoint, tmp_path, "bf16", ranks, o_mode)
    layout = find_layout(folder, parse_config(checkpoint.config, "test"))
    assert (layout.mp, layout.o_mode) == (ranks, o_mode if ranks > 2 else None)


def test_manifest_and_shapes_must_agree(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = write_mp(checkpoint, tmp_path, "bf16", 4, "split")
    digest = "0" * 64
    source = {
        "repo": None,
        "revision": None,
        "license": None,
        "identity": digest,
        "config_sha256": digest,
        "files": [],
        "tensors": {},
    }
    manifest = {
        "schema_version": 1, "tool": {"name": "flagrelease", "version": "0"}, "model": "m", "source": source,
        "recipe": None,
        "target": {"dtype": "bf16", "layout": "mp", "mp": 4, "o_groups": "split"}, "options": {}, "plan": digest,
        "elements": {}, "inexact": {}, "files": [], "tensors": {},
    }  # fmt: skip
    config = parse_config(checkpoint.config, "test")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find_layout(folder, config).o_mode == "split"
    manifest["target"] = {"dtype": "bf16", "layout": "mp", "mp": 4, "o_groups": "shared"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"o_groups is 'shared', but .* is cut as 'split'"):
        find_layout(folder, config)


def test_other_number_of_ranks(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cut for 2 ranks, but 1 run: torchrun --nproc-per-node 2"):
        engine.load(write_mp(checkpoint, tmp_path, "bf16", 2))


def break_missing_rank(folder: Path) -> None:
    (folder / "model1-mp2.safetensors").unlink()


def break_two_layouts(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")


def break_no_files(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def break_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize("damage", [break_missing_rank, break_two_layouts, break_no_files, break_no_config])
def test_incomplete_folders(checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = write_mp(checkpoint, tmp_path, "bf16", 2)
    damage(folder)
    with pytest.raises(
        FlagReleaseError, match=r"no file for rank 1|more than one layout|no \*.safetensors|config.json"
    ):
        engine.load(folder)


def test_experts_of_another_rank(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # A rank file that was copied to another rank's name: its experts are the wrong ones, by name.
    folder = write_mp(checkpoint, tmp_path, "bf16", 2)
    (folder / "model1-mp2.safetensors").write_bytes((folder / "model0-mp2.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"experts\.0\.w1\.weight' is not part of this"), Intake(CPU) as intake:
        Release(folder, 1, 2, intake)


def test_dspark_stages_are_checked_when_nothing_drafts_with_them(tmp_path: Path) -> None:
    dspark = {"dspark_block_size": 5, "dspark_noise_token_id": 319, "dspark_target_layer_ids": [2, 3, 4]}
    config = small_config(**dspark, dspark_markov_rank=32, compress_ratios=[0, 4, 128, 4, 0, 0, 0, 0])
    checkpoint = Checkpoint(config)
    folder = checkpoint.write_hf(tmp_path / "whole", "native")
    assert engine.load(folder, "native").logits(random_tokens(20)).shape == (20, 320)
    with pytest.raises(CheckpointError, match=r"mtp\.2\.markov_head\.markov_w2\.weight' of this model is"):
        engine.load(
            edited(checkpoint, tmp_path / "cut", "native", drop("mtp.2.markov_head.markov_w2.weight")), "native"
        )


def test_a_cut_of_wo_b_inside_a_group_is_refused_before_weights_are_read(
    bf16_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2 o-groups of rank 128 on 4 ranks, as the job would have it: 64 columns each, but rounding groups have 128
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("flagrelease.engine.loader.join_groups", lambda *_: Groups(4, 0, npg=2, o_mode="split"))
    monkeypatch.setattr("flagrelease.engine.loader.open_control", lambda: None)  # no job, so nobody to compare with
    monkeypatch.setattr(Release, "read", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(UsageError, match=r"o_groups \* o_lora_rank / 4 ranks is 64: .* groups of 128"):
        engine.load(bf16_release, "native")


@pytest.fixture(scope="module")
def real_headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public V4-Flash-0731 variant of 160 experts: real headers, index and config; the data are holes."""
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(Path(__file__).parent.parent / "golden" / "flash-0731-reap.tar.xz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            name, data = Path(member.name).name, content.read()
            if name.endswith(".safetensors.json"):
                ends = [entry["data_offsets"][1] for key, entry in json.loads(data).items() if key != "__metadata__"]
                path = folder / name.removesuffix(".json")
                path.write_bytes(len(data).to_bytes(8, "little") + data)
                os.truncate(path, 8 + len(data) + max(ends))
            else:
                (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("rank", "mp"), [(0, 1), (5, 8), (15, 16)])
def test_a_real_checkpoint_is_what_is_expected(real_headers: Path, rank: int, mp: int) -> None:
    with Intake(CPU) as intake:
        release = Release(real_headers, rank, mp, intake)
        assert release.o_mode == ("split" if mp > 8 else None)
        wq_b = release.read("layers.7.attn.wq_b.weight")
        assert (wq_b.dtype, wq_b.shape) == (torch.float8_e4m3fn, (32768 // mp, 1024))
        scale = release.read_scale("layers.7.attn.wq_b.weight")
        assert scale is not None
        assert (scale.dtype, scale.shape) == (torch.float8_e8m0fnu, (256 // mp, 8))
        expert = release.read(f"layers.7.ffn.experts.{160 // mp * rank}.w2.weight")
        assert (expert.dtype, expert.shape) == (torch.int8, (4096, 1024))
