"""Releases with scales by row and by 32, against a second way that is written here in numpy and ml_dtypes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import recut
from harness import contents, plan_of, run_plan

from flagrelease.convert.planning.jobs import Product
from flagrelease.convert.planning.target import Action
from flagrelease.convert.running.by_row import ByRow
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP4
from flagrelease.model.stored import StoredWeight
from flagrelease.model.synthetic import Stored
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec, LossLimit
from flagrelease.records.manifest import read_manifest
from flagrelease.shard.header import TensorMeta

SOURCES = {
    "preview": ({}, Stored()),
    "float scales": ({"expert_dtype": "fp8"}, Stored(experts="fp8", scale_dtype="F32")),
}
TARGETS = ["int8:hf", "int8-experts:hf", "fp8-channel:hf", "w8a8-ascend:hf", "mxfp8:hf", "fp8:hf", "fp8-bf16-wo-a:hf"]


@pytest.fixture(scope="module", params=SOURCES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    changes, stored = SOURCES[request.param]
    root = tmp_path_factory.mktemp("rows")
    write_checkpoint(root / "source", tiny_config(**changes), stored)
    run_plan(plan_of(root / "source", *TARGETS, "bf16:mp2", lossy_repack="allow"), root / "out")
    return root / "source", root / "out"


def power_of_two(rowmax: float, largest: float) -> float:
    """The smallest power of two that is at least rowmax / largest, by trying them."""
    return next(2.0**k for k in range(-126, 200) if largest * 2.0**k >= rowmax) if rowmax else 1.0


def to_int8(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.round(x / scale), -127, 127)


def error(q: np.ndarray, scale: float, x: np.ndarray) -> float:
    total = 0.0
    for one in (q * scale - x).tolist():
        total += one * one
    return total


def int8_row(x: np.ndarray, bf16: bool) -> tuple[np.ndarray, float]:
    """The rule `best`, one row at a time."""
    rowmax = float(np.abs(x).max())
    power = power_of_two(rowmax, 127)
    held = to_int8(x, power)
    if not rowmax or (held * power == x).all():
        return held, power
    absmax = float((ml_dtypes.bfloat16 if bf16 else np.float32)(rowmax / 127))
    other = to_int8(x, absmax)
    return (other, absmax) if error(other, absmax, x) < error(held, power, x) else (held, power)


def check_rows(release: recut.Stored, name: str, x: np.ndarray, dtype: str, bf16: bool = False) -> tuple[int, int]:
    """Compare codes and scales with the rule; (exact rows, exact elements)."""
    scales = recut.array(release[name.removesuffix(".weight") + ".weight_scale"])
    assert (scales.dtype, scales.shape) == (np.float32, (len(x), 1))
    codes = recut.array(release[name])
    exact_rows = exact = 0
    for r in range(len(x)):
        if dtype == "I8":
            held, scale = int8_row(x[r], bf16)
            assert (codes[r] == held).all(), (name, r)
        else:
            scale = power_of_two(float(np.abs(x[r]).max()), 448)
            want = np.clip(x[r] / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
            assert codes[r].tobytes() == want.tobytes(), (name, r)
            held = want.astype(np.float64)
        assert scales[r, 0] == scale, (name, r)
        same = held * scale == x[r]
        exact_rows, exact = exact_rows + same.all(), exact + int(same.sum())
    return int(exact_rows), exact


@pytest.mark.parametrize("target", ["int8", "int8-experts", "fp8-channel", "w8a8-ascend"])
def test_every_weight_by_row_follows_the_rule(made: tuple[Path, Path], target: str) -> None:
    source, out = recut.read_folder(made[0]), made[1]
    release, manifest = recut.read_folder(out / f"{target}-hf"), read_manifest(out / f"{target}-hf")
    dtype = "F8_E4M3" if target == "fp8-channel" else "I8"
    plain = {"wo_a"} | ({"wq_a", "wkv"} if target == "w8a8-ascend" else set())
    seen = 0
    for name, stored in source.items():
        scale = source.get(name.removesuffix(".weight") + ".scale") if name.endswith(".weight") else None
        if scale is None:
            if not name.endswith(".scale"):
                assert release[name] == stored
            continue
        x = recut.decode(stored, scale).astype(np.float64)
        if name.split(".")[-2] in plain or (target == "int8-experts" and ".experts." not in name):
            assert release[name] == recut.bf16(x)
            assert name.removesuffix(".weight") + ".weight_scale" not in release
            continue
        assert release[name][0] == dtype
        if seen < 40 or ".experts." not in name:  # experts are all alike
            rows, exact = check_rows(release, name, x, dtype, target == "w8a8-ascend")
            loss = manifest.losses.get(name)
            if exact == x.size:
                assert loss is None
            else:
                assert loss is not None
                assert (loss.rows, loss.exact_rows, loss.elements, loss.exact_elements) == (len(x), rows, x.size, exact)
                held = recut.array(release[name]).astype(np.float64) * recut.array(
                    release[name.removesuffix(".weight") + ".weight_scale"]
                )
                assert loss.largest_error == np.abs(held - x).max() / np.abs(x).max()
                assert math.isclose(loss.rms_error, math.sqrt(((held - x) ** 2).sum() / (x**2).sum()), rel_tol=1e-9)
            assert manifest.inexact.get(name, 0) == x.size - exact
        seen += 1
    assert seen > 20


def test_zero_points_copies_and_documents_of_a_modelslim_release(made: tuple[Path, Path]) -> None:
    out = made[1]
    release = recut.read_folder(out / "w8a8-ascend-hf")
    scaled = [name for name in release if name.endswith(".weight_scale")]
    for name in scaled:
        zeros = recut.array(release[name.replace("scale", "offset")])
        assert zeros.dtype == np.float32
        assert zeros.shape == recut.array(release[name]).shape
        assert not zeros.any()
        scales = recut.array(release[name])
        assert (scales.astype(ml_dtypes.bfloat16).astype(np.float32) == scales).all()
    assert release["mtp.0.emb.tok_emb.weight"] == release["embed.weight"]
    assert release["mtp.0.head.weight"] == release["head.weight"]
    folder = out / "w8a8-ascend-hf"
    description = json.loads((folder / "quant_model_description.json").read_text())
    about = {key: description.pop(key) for key in ("version", "model_quant_type", "group_size", "metadata")}
    assert about == {"version": "1.0.0", "model_quant_type": "W8A8_DYNAMIC", "group_size": 0, "metadata": {}}
    assert description.keys() == release.keys()
    quantised = {name.removesuffix("_scale") for name in scaled}
    for name, kind in description.items():
        of = name.removesuffix("_scale").removesuffix("_offset")
        assert kind == ("W8A8_DYNAMIC" if of in quantised else "FLOAT"), name
    index = json.loads((folder / "quant_model_weights.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == release.keys()
    assert not (folder / "model.safetensors.index.json").exists()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_mxfp8_loses_nothing(made: tuple[Path, Path]) -> None:
    source, release = recut.read_folder(made[0]), recut.read_folder(made[1] / "mxfp8-hf")
    for name, stored in source.items():
        scale = source.get(name.removesuffix(".weight") + ".scale") if name.endswith(".weight") else None
        if scale is None or ".wo_a." in name:
            continue
        dtype, shape, data = release[name.removesuffix(".weight") + ".weight_scale"]
        codes = recut.array(release[name]).astype(np.float64)
        assert (dtype, shape) == ("U8", (codes.shape[0], -(-codes.shape[1] // 32)))
        exponents = np.frombuffer(data, dtype=np.uint8).reshape(shape).astype(np.float64) - 127
        values = codes * np.repeat(2.0**exponents, 32, axis=1)[:, : codes.shape[1]]
        assert (values == recut.decode(stored, scale)).all(), name
    assert read_manifest(made[1] / "mxfp8-hf").inexact == {}


def test_fp8_for_stacks_has_f32_scales_and_says_so(made: tuple[Path, Path]) -> None:
    source, out = recut.read_folder(made[0]), made[1]
    for folder in ("fp8-hf", "fp8-bf16-wo-a-hf"):
        release, config = recut.read_folder(out / folder), json.loads((out / folder / "config.json").read_text())
        assert config["expert_dtype"] == "fp8"
        assert config["quantization_config"]["scale_fmt"] == "ue8m0"
        assert {release[n][0] for n in release if ".experts." in n and n.endswith(".scale")} == {"F32"}
    wo_a = [name.removesuffix(".weight") for name in source if name.endswith("wo_a.weight")]
    ignored = config["quantization_config"]["ignored_layers"]
    assert set(wo_a) | {f"model.{name}" for name in wo_a} <= set(ignored)
    assert "model.layers.3.attn.wo_a" in ignored  # the stage behind three layers, as vLLM counts it
    assert all(release[f"{name}.weight"][0] == "BF16" for name in wo_a)


def test_compressed_tensors_config(made: tuple[Path, Path]) -> None:
    """By hand from what FlagOS-Compressor writes (serving stacks, 3)."""
    for folder, number in (("int8-hf", "int"), ("fp8-channel-hf", "float")):
        config = json.loads((made[1] / folder / "config.json").read_text())
        assert "expert_dtype" not in config
        assert config["torch_dtype"] == "bfloat16"
        quantization = config["quantization_config"]
        ignore = [re.compile(entry.removeprefix("re:")) for entry in quantization.pop("ignore")]

        plain = (
            "layers.0.attn.wo_a", "model.layers.1.self_attn.wo_a", "layers.0.attn.compressor.fused_wkv_wgate",
            "lm_head", "model.layers.0.ffn.gate", "model.layers.0.mlp.gate",
        )  # fmt: skip
        assert [name for name in plain if any(entry.match(name) for entry in ignore)] == list(plain)
        quantised = (
            "layers.0.attn.wq_b", "layers.0.ffn.experts.0.w1", "model.layers.0.mlp.experts.0.gate_proj",
            "model.layers.0.mlp.experts.0.down_proj", "layers.0.attn.fused_wqa_wkv", "layers.0.attn.indexer.wq_b",
        )  # fmt: skip
        assert [name for name in quantised if any(entry.match(name) for entry in ignore)] == []
        group = quantization["config_groups"].pop("w8a8_channel_token")
        assert group["targets"] == ["Linear"]
        assert group["weights"] == {
            "num_bits": 8, "type": number, "strategy": "channel", "symmetric": True, "dynamic": False
        }  # fmt: skip
        assert group["input_activations"] == {
            "num_bits": 8, "type": number, "strategy": "token", "symmetric": True, "dynamic": True
        }  # fmt: skip
        assert quantization["quant_method"] == "compressed-tensors"
        assert quantization["format"] == f"{number}-quantized"


def test_same_bytes_whatever_stands_beside_them_and_with_any_workers(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Other targets change how large chunks are; sums of errors must not notice."""
    for target in ("int8:hf", "w8a8-ascend:hf"):
        run_plan(plan_of(made[0], target, lossy_repack="allow"), tmp_path, workers=3)
        folder = target.replace(":", "-")
        assert contents(tmp_path / folder) == contents(made[1] / folder)


def test_a_release_for_a_stack_is_no_source(made: tuple[Path, Path]) -> None:
    for folder in ("int8-hf", "fp8-channel-hf"):
        with pytest.raises(
            CheckpointError, match=r"stored as (int8|fp8-channel), which is a release for a serving stack"
        ):
            plan_of(made[1] / folder, "bf16:hf")


@pytest.mark.parametrize(("limit", "passes"), [(0.3, True), (0.299, False)])
def test_exactly_the_share_that_is_allowed_passes(limit: float, passes: bool) -> None:
    """1 - 7 / 10 is above 0.3 in float64, so 3 inexact rows of 10 were refused where verify allows them."""
    spec = TensorSpec("a.weight", (10, 64), Storage.EXPERT)
    tensor = StoredWeight(
        spec,
        TensorMeta("a.weight", "I8", (10, 32), Path("f"), 0, 320),
        TensorMeta("a.scale", "F8_E8M0", (10, 2), Path("f"), 320, 340),
        FP4,
        (1, 32),
    )
    options = ConvertSpec(lossy_repack=LossLimit(largest_share_of_inexact_rows=limit))
    scale = np.full((10, 2), 127, dtype=np.uint8)
    scale[:3, 1] = 117  # 0.5 * 2^-10 beside 6 * 2^0: no row scale holds both
    maker = ByRow(Product(Action.INT8, {"weight": (), "scale": ()}, frozenset()), tensor, scale, options)
    maker.emit(np.full((10, 32), 0x17, dtype=np.uint8), 0, Discarding())
    if passes:
        loss = maker.loss()
        assert loss is not None
        assert (loss.rows, loss.exact_rows) == (10, 7)
    else:
        with pytest.raises(CheckpointError, match="3 of 10 rows"):
            maker.loss()


class Discarding:
    """A sink that keeps nothing."""

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, dtype=np.uint8)

    def buffer_for(self, nbytes: int, row: int, row_bytes: int, pieces: object) -> np.ndarray:
        return self.buffer(nbytes)

    def put(self, data: np.ndarray, row: int, row_bytes: int, pieces: object) -> None:
        pass

    def drop(self, data: np.ndarray) -> None:
        pass


def test_loss_is_refused_or_limited(made: tuple[Path, Path], tmp_path: Path) -> None:
    source = made[0]
    with pytest.raises(CheckpointError, match=r"tensor 'layers\..*int8 with a scale for each row cannot hold"):
        run_plan(plan_of(source, "int8:hf"), tmp_path / "a")
    limit = LossLimit(largest_share_of_inexact_rows=0.25)
    with pytest.raises(CheckpointError, match=r"of \d+ rows hold an element .*the recipe allows 0.25"):
        run_plan(plan_of(source, "int8:hf", lossy_repack=limit), tmp_path / "b")
    run_plan(plan_of(source, "mxfp8:hf"), tmp_path / "c")
