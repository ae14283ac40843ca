"""What is refused of releases of the serving stacks' formats, with tensor, file and rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_checkpoint import Checkpoint, small_config
from serving_releases import ServingForm, ServingRelease

from flagrelease import engine
from flagrelease.errors import CheckpointError, UsageError

Edit = Callable[[ServingRelease], None]
AT = "layers.1.attn.wq_b"
EXPERT = "layers.1.ffn.experts.5.w2"


@pytest.fixture(scope="module")
def shallow() -> Checkpoint:
    return Checkpoint(small_config(num_hidden_layers=2, compress_ratios=[0, 4, 0]))


def put(name: str, value: float, place: tuple[int, ...] = (3, 0)) -> Edit:
    def edit(release: ServingRelease) -> None:
        tensor = release.stored[name].clone()
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.view(torch.uint8)[place] = int(value)
        else:
            tensor[place] = value
        release.stored[name] = tensor

    return edit


def drop(name: str) -> Edit:
    def edit(release: ServingRelease) -> None:
        del release.stored[name]

    return edit


def change(name: str, to: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    return lambda release: release.stored.update({name: to(release.stored[name])})


SCALE = "is NaN, infinite or negative; a scale is a finite number that is not negative"
CASES: list[tuple[ServingForm, Edit, str]] = [
    ("int8", put(f"{AT}.weight", -128), f"'{AT}.weight': holds the code -128; codes of symmetric INT8 are -127 to 127"),
    ("w8a8-ascend", put(f"{EXPERT}.weight", -128), f"'{EXPERT}.weight': holds the code -128"),
    ("int8", put(f"{AT}.weight_scale", float("nan")), f"'{AT}.weight_scale' holds a value that {SCALE}"),
    ("int8", put(f"{EXPERT}.weight_scale", float("inf")), f"'{EXPERT}.weight_scale' holds a value that {SCALE}"),
    ("int8-experts", put(f"{EXPERT}.weight_scale", -1.0), f"'{EXPERT}.weight_scale' holds a value that {SCALE}"),
    ("fp8-channel", put(f"{AT}.weight_scale", -1.0), f"'{AT}.weight_scale' holds a value that {SCALE}"),
    ("fp8-channel", put(f"{AT}.weight", 0x7F), f"'{AT}.weight': holds a code that is NaN"),
    ("mxfp8", put(f"{AT}.weight", 0xFF), f"'{AT}.weight': holds a code that is NaN"),
    ("mxfp8", put(f"{EXPERT}.weight_scale", 255), f"'{EXPERT}.weight_scale' holds a value that {SCALE}"),
    ("w8a8-ascend", put(f"{AT}.weight_offset", 1.0), f"'{AT}.weight_offset' holds a zero point that is not 0"),
    ("w8a8-ascend", put(f"{AT}.weight_offset", float("nan")), f"'{AT}.weight_offset' holds a zero point that is not"),
    ("int8", drop(f"{AT}.weight_scale"), f"{AT}.weight': I8 without a scale"),
    ("mxfp8", drop(f"{EXPERT}.weight_scale"), f"{EXPERT}.weight': F8_E4M3 without a scale"),
    ("int8", drop(f"{EXPERT}.weight"), f"scale '{EXPERT}.weight_scale' has no weight"),
    ("w8a8-ascend", drop("mtp.0.head.weight"), "'mtp.0.head.weight' is in no file; a ModelSlim folder"),
    ("mxfp8", put("mtp.0.head.weight", 7.0, (319, 1)), "'mtp.0.head.weight' differs from 'head.weight'"),
    ("mxfp8", change("mtp.0.emb.tok_emb.weight", torch.Tensor.float), "tok_emb.weight' differs from 'embed.weight'"),
    ("int8", change(f"{AT}.weight_scale", lambda s: s.mT), r"shape \[1, 512\]; int8 \[512, 128\] in blocks of \[1, 12"),
    ("int8", change(f"{AT}.weight_scale", lambda s: s[:, 0]), r"shape \[512\]; int8 \[512, 128\]"),
    ("int8", change(f"{AT}.weight_scale", torch.Tensor.half), "dtype F16; int8 has scales of BF16, F32"),
    ("fp8-channel", change(f"{AT}.weight_scale", torch.Tensor.half), "dtype F16; fp8-channel has scales of"),
]


@pytest.mark.parametrize(("form", "edit", "said"), CASES)
def test_refused(shallow: Checkpoint, tmp_path: Path, form: ServingForm, edit: Edit, said: str) -> None:
    release = ServingRelease(shallow, form)
    edit(release)
    release.write(tmp_path)
    with pytest.raises(CheckpointError, match=said) as caught:
        engine.load(tmp_path)
    assert ".safetensors" in str(caught.value) or "is in no file" in str(caught.value)


def test_copies_belong_to_modelslim_folders(shallow: Checkpoint, tmp_path: Path) -> None:
    release = ServingRelease(shallow, "int8")
    release.stored["mtp.0.head.weight"] = release.stored["head.weight"].clone()
    with pytest.raises(CheckpointError, match=r"'mtp.0.head.weight' is not part of this model"):
        engine.load(release.write(tmp_path))


def test_a_modelslim_folder_has_a_description_and_one_index(shallow: Checkpoint, tmp_path: Path) -> None:
    folder = ServingRelease(shallow, "mxfp8").write(tmp_path)
    index = folder / "quant_model_weights.safetensors.index.json"
    (folder / "model.safetensors.index.json").write_bytes(index.read_bytes())
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: a ModelSlim folder has"):
        engine.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    index.rename(folder / "moved.json")
    with pytest.raises(CheckpointError, match=r"quant_model_weights.safetensors.index.json: not found"):
        engine.load(folder)
    (folder / "moved.json").rename(index)
    assert engine.load(folder).numerics.name == "mxfp8"
    (folder / "quant_model_description.json").unlink()
    with pytest.raises(CheckpointError, match=r"quant_model_description.json: not found"):
        engine.load(folder)


def test_weights_of_one_input_are_stored_alike(shallow: Checkpoint, tmp_path: Path) -> None:
    release = ServingRelease(shallow, "int8")
    release.stored["layers.1.attn.wq_a.weight"] = shallow.values["layers.1.attn.wq_a.weight"]
    del release.stored["layers.1.attn.wq_a.weight_scale"]
    release.write(tmp_path)
    with pytest.raises(UsageError, match=r"'layers.1.attn.wq_a.weight' and 'layers.1.attn.wkv.weight' have one input"):
        engine.load(tmp_path)
    engine.load(tmp_path, "bf16")


def test_a_policy_wants_weights_of_its_format(quick_release: Path) -> None:
    with pytest.raises(UsageError, match=r"numerics 'int8' round .* stored as int8; this release stores bf16 only"):
        engine.load(quick_release, "int8")


def test_groups_of_mxfp8_divide_what_ranks_have(tmp_path: Path) -> None:
    checkpoint = Checkpoint(small_config(num_hidden_layers=1, compress_ratios=[0, 0], q_lora_rank=144))
    release = ServingRelease(checkpoint, "int8")  # rows of any length
    assert engine.load(release.write(tmp_path)).numerics.name == "int8"
    with pytest.raises(UsageError, match="q_lora_rank is 144: activations are rounded to MXFP8 in groups of 32"):
        engine.load(tmp_path, "mxfp8")
