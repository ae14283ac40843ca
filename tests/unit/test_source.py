"""Checkpoints that headers and config show to be wrong, refused by tensor, file and rule; and the forms that exist.

A checkpoint here is a table of (name -> file, dtype, shape): data are holes, because nothing of them may be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flagrelease.convert.planning.target import parse_target, require_possible
from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.stored import StoredWeight
from flagrelease.model.synthetic import Stored, stored_tensors
from flagrelease.model.v4.config import parse_config
from flagrelease.model.v4.inventory import inventory
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.shard.header import build_header, tensor_bytes
from flagrelease.shard.index import INDEX_NAME
from flagrelease.source.source import Source, read_source, survey_source

WQ_A, WQ_A_SCALE = "layers.1.attn.wq_a.weight", "layers.1.attn.wq_a.scale"
W1, W1_SCALE = "layers.1.ffn.experts.3.w1.weight", "layers.1.ffn.experts.3.w1.scale"
NORM, SINK = "layers.1.attn_norm.weight", "layers.1.attn.attn_sink"


@dataclass
class Checkpoint:
    """A folder to be: what its config says, what its headers say."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def fill(self, stored: Stored) -> Checkpoint:
        parsed = parse_config(self.config, "config")
        for spec in inventory(parsed).values():
            self.tensors |= {name: (dtype, shape) for name, dtype, shape in stored_tensors(spec, parsed, stored)}
        return self

    def rename(self, old: str, new: str) -> None:
        self.tensors[new] = self.tensors.pop(old)

    def write(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        total, weight_map = 0, {}
        for file in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            mine = [
                (n, *t) for n, t in self.tensors.items() if n.startswith("layers.1.") == file.startswith("model-00002")
            ]
            header = build_header(mine)
            size = sum(tensor_bytes(dtype, shape) for _, dtype, shape in mine)
            (self.folder / file).write_bytes(header)
            os.truncate(self.folder / file, len(header) + size)
            total += size
            weight_map |= {name: file for name, _, _ in mine}
        (self.folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
        return self.folder

    @property
    def file(self) -> Path:
        """The file that holds layer 1."""
        return self.folder / "model-00002-of-00002.safetensors"

    def problems(self) -> list[str]:
        """Everything that `survey_source` lists; `read_source` refuses with the first of it."""
        _, problems = survey_source(self.write())
        assert problems
        with pytest.raises(CheckpointError) as caught:
            read_source(self.folder)
        assert str(caught.value) == problems[0]
        return problems


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "source", tiny_config()).fill(Stored())


def find(source: Source, name: str) -> StoredWeight:
    return next(tensor for tensor in source.tensors if tensor.spec.name == name)


# --- the forms that exist


def test_every_tensor_is_understood(checkpoint: Checkpoint) -> None:
    source = read_source(checkpoint.write())
    assert sum(1 + (t.scale is not None) for t in source.tensors) == len(checkpoint.tensors)
    assert {t.spec.name for t in source.tensors} == set(inventory(source.config))
    wq_a, w1, norm = (find(source, name) for name in (WQ_A, W1, NORM))
    assert (wq_a.format and wq_a.format.name, wq_a.block, wq_a.scale and wq_a.scale.name) == (
        "fp8",
        (128, 128),
        WQ_A_SCALE,
    )
    assert (w1.format and w1.format.name, w1.block, w1.scale and w1.scale.name) == ("fp4", (1, 32), W1_SCALE)
    assert (norm.format, norm.scale, norm.weight.file) == (None, None, checkpoint.file)
    assert source.expert_format is not None
    assert source.expert_format.name == "fp4"


def test_tensors_are_in_the_order_of_files_and_offsets(checkpoint: Checkpoint) -> None:
    source = read_source(checkpoint.write())
    places = [(t.weight.file, t.weight.begin) for t in source.tensors]
    assert places == sorted(places)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F32", "BF16", "F16"])
@pytest.mark.parametrize("suffix", [".scale", ".weight_scale_inv"])
def test_fp8_scales_of_every_dtype_and_name(tmp_path: Path, dtype: str, suffix: str) -> None:
    config = tiny_config(expert_dtype="fp8")
    checkpoint = Checkpoint(tmp_path / "source", config).fill(Stored("fp8", dtype, suffix))
    source = read_source(checkpoint.write())
    for name in (WQ_A, W1):
        tensor = find(source, name)
        assert tensor.scale is not None
        assert tensor.scale.name == name.removesuffix(".weight") + suffix
        assert tensor.scale.dtype == dtype
        assert tensor.format is not None
        assert (tensor.format.name, tensor.block) == ("fp8", (128, 128))


def test_names_of_scales_may_be_mixed(checkpoint: Checkpoint) -> None:
    checkpoint.rename(WQ_A_SCALE, "layers.1.attn.wq_a.weight_scale_inv")
    scale = find(read_source(checkpoint.write()), WQ_A).scale
    assert scale is not None
    assert scale.name == "layers.1.attn.wq_a.weight_scale_inv"


def test_packed_fp4_may_be_u8(checkpoint: Checkpoint) -> None:
    for name, (dtype, shape) in checkpoint.tensors.items():
        if dtype == "I8":
            checkpoint.tensors[name] = ("U8", shape)
    source = read_source(checkpoint.write())
    assert source.expert_format is not None
    assert source.expert_format.name == "fp4"


def test_bf16_wo_a_without_a_scale(checkpoint: Checkpoint) -> None:
    """As in the public FP8 re-releases, by their size."""
    for name in [name for name in checkpoint.tensors if name.endswith("wo_a.weight")]:
        checkpoint.tensors[name] = ("BF16", checkpoint.tensors[name][1])
        del checkpoint.tensors[name.removesuffix(".weight") + ".scale"]
    source = read_source(checkpoint.write())
    assert find(source, "layers.1.attn.wo_a.weight").format is None
    assert find(source, WQ_A).format is not None


def test_bf16_release_is_read_back(tmp_path: Path) -> None:
    config = {k: v for k, v in tiny_config().items() if k not in {"quantization_config", "expert_dtype"}}
    checkpoint = Checkpoint(tmp_path / "source", config)
    for spec in inventory(parse_config(config, "config")).values():
        dtype = "BF16" if spec.storage.name in {"LINEAR", "EXPERT"} else spec.storage.name
        checkpoint.tensors[spec.name] = (dtype, spec.shape)
    source = read_source(checkpoint.write())
    assert source.expert_format is None
    for target in ("native:hf", "fp8:mp8"):
        with pytest.raises(UsageError, match="holds no quantised tensor"):
            require_possible(parse_target(target), source)
    require_possible(parse_target("bf16:mp8"), source)


@pytest.mark.parametrize("block", [(32, 32), (64, 128), (100, 48), (1, 256)])
def test_block_size_is_the_config_s(tmp_path: Path, block: tuple[int, int]) -> None:
    config = tiny_config()
    config["quantization_config"] = config["quantization_config"] | {"weight_block_size": list(block)}
    checkpoint = Checkpoint(tmp_path / "source", config).fill(Stored())
    rows, columns = checkpoint.tensors[WQ_A][1]
    expected = ((rows + block[0] - 1) // block[0], (columns + block[1] - 1) // block[1])
    assert checkpoint.tensors[WQ_A_SCALE][1] == expected
    source = read_source(checkpoint.write())
    assert find(source, WQ_A).block == block
    assert find(source, W1).block == (1, 32)
    with pytest.raises(UsageError, match=r"repacked in blocks of \[128, 128\]"):
        require_possible(parse_target("fp8:hf"), source)


def test_scales_in_another_file_than_their_weights(checkpoint: Checkpoint) -> None:
    """Facts 2.2: the published files keep pairs together, but nothing says they must."""
    folder = checkpoint.write()
    for path in folder.glob("model-*"):
        path.unlink()
    weight_map, total = {}, 0
    for scales in (False, True):
        file = f"model-{scales:d}.safetensors"
        mine = [(n, *t) for n, t in checkpoint.tensors.items() if n.endswith(".scale") == scales]
        size = sum(tensor_bytes(dtype, shape) for _, dtype, shape in mine)
        header = build_header(mine)
        (folder / file).write_bytes(header)
        os.truncate(folder / file, len(header) + size)
        weight_map |= {name: file for name, _, _ in mine}
        total += size
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    wq_a = find(read_source(folder), WQ_A)
    assert wq_a.scale is not None
    assert (wq_a.weight.file.name, wq_a.scale.file.name) == ("model-0.safetensors", "model-1.safetensors")


def test_expert_dtype_may_be_absent_or_inside(checkpoint: Checkpoint) -> None:
    del checkpoint.config["expert_dtype"]
    read_source(checkpoint.write())
    checkpoint.config["quantization_config"]["expert_dtype"] = "fp4"
    read_source(checkpoint.write())
    checkpoint.config["quantization_config"]["expert_dtype"] = "fp8"
    assert "expert_dtype is fp8, the experts are stored as fp4" in checkpoint.problems()[0]


# --- scales


def test_missing_scale_is_refused(checkpoint: Checkpoint) -> None:
    del checkpoint.tensors[WQ_A_SCALE]
    assert checkpoint.problems()[0] == (
        f"{checkpoint.file}: tensor {WQ_A!r}: F8_E4M3 without a scale; {WQ_A_SCALE!r} is in no file"
    )


def test_missing_scale_of_an_expert_is_refused(checkpoint: Checkpoint) -> None:
    del checkpoint.tensors[W1_SCALE]
    assert f"tensor {W1!r}: I8 without a scale; {W1_SCALE!r} is in no file" in checkpoint.problems()[0]


@pytest.mark.parametrize("scale", ["layers.1.attn.nothing.scale", "layers.1.attn.nothing.weight_scale_inv", ".scale"])
def test_scale_without_weight_is_refused(checkpoint: Checkpoint, scale: str) -> None:
    checkpoint.tensors[scale] = ("F8_E8M0", (1, 1))
    (problem,) = checkpoint.problems()
    weight = scale.replace(".weight_scale_inv", ".scale").removesuffix(".scale") + ".weight"
    assert f"scale {scale!r} has no weight {weight!r}" in problem
    assert "safetensors" in problem


def test_weight_without_its_scale_s_name_is_refused_twice(checkpoint: Checkpoint) -> None:
    """A renamed scale is a missing one and an unpaired one; both are said."""
    checkpoint.rename(WQ_A_SCALE, "layers.1.attn.wq_x.scale")
    problems = checkpoint.problems()
    assert any("scale 'layers.1.attn.wq_x.scale' has no weight" in problem for problem in problems)
    assert any(f"{WQ_A!r}: F8_E4M3 without a scale" in problem for problem in problems)


def test_two_scales_for_one_weight_are_refused(checkpoint: Checkpoint) -> None:
    other = "layers.1.attn.wq_a.weight_scale_inv"
    checkpoint.tensors[other] = checkpoint.tensors[WQ_A_SCALE]
    (problem,) = checkpoint.problems()
    assert problem == f"{checkpoint.file}: weight {WQ_A!r} has two scales, {WQ_A_SCALE!r} and {other!r}"


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 1), (1, 1), (1, 3), (1, 2, 1), (128, 256), (0, 2)])
def test_scale_of_another_shape_is_refused(checkpoint: Checkpoint, shape: tuple[int, ...]) -> None:
    assert checkpoint.tensors[WQ_A][1] == (128, 256)
    checkpoint.tensors[WQ_A_SCALE] = ("F8_E8M0", shape)
    (problem, *_) = checkpoint.problems()
    rule = "fp8 [128, 256] in blocks of [128, 128] has [1, 2]"
    assert problem == f"{checkpoint.file}: scale {WQ_A_SCALE!r}: shape {list(shape)}; {rule}"


@pytest.mark.parametrize("shape", [(256, 1), (1, 128), (128, 4), (128, 16), (4, 128), (128,), (1, 2)])
def test_scale_of_an_expert_of_another_shape_is_refused(checkpoint: Checkpoint, shape: tuple[int, ...]) -> None:
    """Among them 64 and 16 elements a scale, the transpose, and the shape for blocks of 128 x 128."""
    assert checkpoint.tensors[W1] == ("I8", (128, 128))
    checkpoint.tensors[W1_SCALE] = ("F8_E8M0", shape)
    assert checkpoint.problems()[0] == (
        f"{checkpoint.file}: scale {W1_SCALE!r}: shape {list(shape)}; fp4 [128, 256] in blocks of [1, 32] has [128, 8]"
    )


@pytest.mark.parametrize("dtype", ["U8", "F8_E4M3", "I8", "F64", "I32", "BOOL"])
def test_fp8_scale_of_another_dtype_is_refused(checkpoint: Checkpoint, dtype: str) -> None:
    checkpoint.tensors[WQ_A_SCALE] = (dtype, checkpoint.tensors[WQ_A_SCALE][1])
    (problem, *_) = checkpoint.problems()
    expected = f"dtype {dtype}; fp8 has scales of BF16, F16, F32, F8_E8M0"
    assert problem == f"{checkpoint.file}: scale {WQ_A_SCALE!r}: {expected}"


@pytest.mark.parametrize("dtype", ["U8", "F32", "BF16", "F16", "F8_E4M3"])
def test_fp4_scale_of_another_dtype_is_refused(checkpoint: Checkpoint, dtype: str) -> None:
    checkpoint.tensors[W1_SCALE] = (dtype, checkpoint.tensors[W1_SCALE][1])
    assert checkpoint.problems()[0] == (
        f"{checkpoint.file}: scale {W1_SCALE!r}: dtype {dtype}; fp4 has scales of F8_E8M0"
    )


@pytest.mark.parametrize("name", [NORM, "layers.1.attn.wo_a.weight"])
def test_scale_of_a_plain_weight_is_refused(checkpoint: Checkpoint, name: str) -> None:
    """A BF16 weight with a scale may be dequantised already, or may not: nothing is guessed."""
    scale = name.removesuffix(".weight") + ".scale"
    checkpoint.tensors[name] = ("BF16", checkpoint.tensors[name][1])
    checkpoint.tensors.setdefault(scale, ("F8_E8M0", (1, 1)))
    assert checkpoint.problems()[0] == (
        f"{checkpoint.file}: tensor {name!r}: BF16 has a scale ({scale!r}), but is not a quantised format"
    )


# --- config.json


def test_no_config_is_refused(checkpoint: Checkpoint) -> None:
    (checkpoint.write() / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"source/config\.json: not found"):
        read_source(checkpoint.folder)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/gone: no such folder"):
        read_source(tmp_path / "gone")


NEEDED = [
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_hash_layers", "num_nextn_predict_layers",
    "num_attention_heads", "head_dim", "qk_rope_head_dim", "q_lora_rank", "o_lora_rank", "o_groups",
    "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "routed_scaling_factor",
    "scoring_func", "swiglu_limit", "index_n_heads", "index_head_dim", "index_topk", "hc_mult", "hc_sinkhorn_iters",
    "hc_eps", "rms_norm_eps", "sliding_window", "rope_theta", "compress_rope_theta", "rope_scaling", "compress_ratios",
    "max_position_embeddings", "bos_token_id", "eos_token_id",
]  # fmt: skip


def refused_config(checkpoint: Checkpoint) -> str:
    (checkpoint.write() / "config.json").write_text(json.dumps(checkpoint.config))
    with pytest.raises(CheckpointError) as caught:
        read_source(checkpoint.folder)
    assert str(checkpoint.folder / "config.json") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", NEEDED)
def test_missing_config_key_is_refused_by_name(checkpoint: Checkpoint, key: str) -> None:
    """Facts 2.5: defaults of DeepSeek's code differ from the model, so a missing key is a silently wrong model."""
    del checkpoint.config[key]
    assert key in refused_config(checkpoint)


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings", "beta_fast", "beta_slow"])
def test_missing_rope_scaling_key_is_refused_by_name(checkpoint: Checkpoint, key: str) -> None:
    del checkpoint.config["rope_scaling"][key]
    assert f"rope_scaling.{key}" in refused_config(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "deepseek_v3"), ("model_type", "deepseek_v5"), ("hidden_size", 0), ("hidden_size", -256),
        ("hidden_size", 256.5), ("hidden_size", None), ("hidden_size", [256]), ("compress_ratios", [0, 4, 128]),
        ("compress_ratios", [0, 4, 128, 0, 0]), ("compress_ratios", [0, 4, 127, 0]), ("n_shared_experts", 2),
        ("o_groups", 3), ("scoring_func", "softmax"), ("expert_dtype", "int8"), ("dspark_block_size", 5),
    ],
)  # fmt: skip
def test_wrong_config_value_is_refused(checkpoint: Checkpoint, key: str, value: Any) -> None:
    checkpoint.config[key] = value
    assert key in refused_config(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_config_that_is_no_json_object_is_refused(checkpoint: Checkpoint, text: str) -> None:
    (checkpoint.write() / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: (not valid JSON|a JSON object is expected)"):
        read_source(checkpoint.folder)


def test_fp8_without_a_block_size_is_refused(checkpoint: Checkpoint) -> None:
    del checkpoint.config["quantization_config"]
    parsed = parse_config(checkpoint.config, "config")
    assert parsed.block_size is None
    problems = checkpoint.problems()
    assert any(f"{WQ_A!r}: fp8 needs quantization_config.weight_block_size" in problem for problem in problems)


def test_quantization_config_over_plain_weights_is_refused(checkpoint: Checkpoint) -> None:
    """What hand-made BF16 releases look like: the config still says FP8."""
    plain = {}
    for name, (dtype, shape) in checkpoint.tensors.items():
        if name.endswith(".scale"):
            continue
        plain[name] = (
            ("BF16", (*shape[:-1], shape[-1] * 2)) if dtype == "I8" else (dtype.replace("F8_E4M3", "BF16"), shape)
        )
    checkpoint.tensors = plain
    problems = checkpoint.problems()
    where = checkpoint.folder / "config.json"
    first = "'layers.0.ffn.experts.0.w1.weight' in model-00001-of-00002.safetensors"
    assert problems == [
        f"{where}: expert_dtype is fp4, the experts are stored as bf16 ({first})",
        f"{where}: has a quantization_config, but no tensor is quantised",
    ]


# --- tensors against the model


@pytest.mark.parametrize(
    "name",
    [
        "layers.3.attn_norm.weight", "layers.1.attn.wq_a.bias", "layers.01.attn_norm.weight",
        "Layers.1.attn_norm.weight", "layers.1.ffn.experts.16.w1.weight", "model.layers.1.input_layernorm.weight",
    ],
)  # fmt: skip
def test_unknown_tensor_is_refused(checkpoint: Checkpoint, name: str) -> None:
    checkpoint.tensors[name] = ("BF16", (256,))
    (problem,) = checkpoint.problems()
    hint = " (a name of transformers; DeepSeek's own names have no 'model.' prefix)" if "model." in name else ""
    assert problem.endswith(f"safetensors: tensor {name!r} is not part of this model{hint}")


@pytest.mark.parametrize("name", [NORM, SINK, "embed.weight", "layers.0.ffn.gate.tid2eid", "mtp.0.h_proj.weight"])
def test_missing_tensor_is_refused(checkpoint: Checkpoint, name: str) -> None:
    del checkpoint.tensors[name]
    checkpoint.tensors.pop(name.removesuffix(".weight") + ".scale", None)
    assert checkpoint.problems() == [f"{checkpoint.folder}: tensor {name!r} of this model is in no file"]


def test_missing_layer_lists_every_tensor_of_it(checkpoint: Checkpoint) -> None:
    gone = [name for name in checkpoint.tensors if name.startswith("layers.1.")]
    checkpoint.tensors = {name: t for name, t in checkpoint.tensors.items() if name not in gone}
    missing = [problem for problem in checkpoint.problems() if "of this model is in no file" in problem]
    assert len(missing) == sum(not name.endswith(".scale") for name in gone)


@pytest.mark.parametrize(
    ("name", "shape", "logical"),
    [
        (NORM, (255,), "[255]"), (NORM, (256, 1), "[256, 1]"), (NORM, (), "[]"), (SINK, (32,), "[32]"),
        (WQ_A, (256, 128), "[256, 128]"), (WQ_A, (128, 256, 1), "[128, 256, 1]"), (WQ_A, (), "[]"),
        (W1, (128, 256), "[128, 512]"), (W1, (256, 128), "[256, 256]"), (W1, (128,), "[256]"), (W1, (), "[]"),
        ("layers.1.attn.wo_a.weight", (8, 256, 256), "[8, 256, 256]"),
    ],
)  # fmt: skip
def test_shape_against_the_config_is_refused(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], logical: str
) -> None:
    checkpoint.tensors[name] = (checkpoint.tensors[name][0], shape)
    expected = inventory(parse_config(checkpoint.config, "config"))[name].shape
    assert checkpoint.problems()[0] == (
        f"{checkpoint.file}: tensor {name!r}: shape {logical}; config.json gives {list(expected)}"
    )


@pytest.mark.parametrize("dtype", ["F16", "F32", "F64", "I32", "F8_E5M2", "F4", "BOOL", "F8_E8M0"])
def test_linear_stored_as_something_else_is_refused(checkpoint: Checkpoint, dtype: str) -> None:
    checkpoint.tensors[WQ_A] = (dtype, checkpoint.tensors[WQ_A][1])
    del checkpoint.tensors[WQ_A_SCALE]
    (problem, *_) = checkpoint.problems()
    assert problem.startswith(f"{checkpoint.file}: tensor {WQ_A!r}: stored as {dtype}; BF16 or a quantised format")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(NORM, "F32"), (NORM, "F16"), (SINK, "BF16"), (SINK, "F64"), ("layers.0.ffn.gate.tid2eid", "I32")],
)
def test_plain_tensor_of_another_dtype_is_refused(checkpoint: Checkpoint, name: str, dtype: str) -> None:
    checkpoint.tensors[name] = (dtype, checkpoint.tensors[name][1])
    (problem, *_) = checkpoint.problems()
    assert f"tensor {name!r}: stored as {dtype}; " in problem


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8"])
def test_quantised_norm_is_refused(checkpoint: Checkpoint, dtype: str) -> None:
    checkpoint.tensors[NORM] = (dtype, (256,))
    assert checkpoint.problems()[0] == (f"{checkpoint.file}: tensor {NORM!r}: stored as {dtype}; this tensor is bf16")


# --- experts


def test_expert_dtype_that_contradicts_the_storage_is_refused(tmp_path: Path) -> None:
    for declared, stored in (("fp8", "fp4"), ("fp4", "fp8")):
        checkpoint = Checkpoint(tmp_path / declared, tiny_config(expert_dtype=declared)).fill(Stored(experts=stored))
        (problem,) = checkpoint.problems()
        where = checkpoint.folder / "config.json"
        assert problem.startswith(
            f"{where}: expert_dtype is {declared}, the experts are stored as {stored} ('layers.0."
        )


@pytest.mark.parametrize("declared", ["fp4", "fp8", None])
def test_experts_of_several_formats_are_refused(checkpoint: Checkpoint, declared: str | None) -> None:
    checkpoint.config["expert_dtype"] = declared
    checkpoint.tensors[W1] = ("F8_E4M3", (128, 256))
    checkpoint.tensors[W1_SCALE] = ("F8_E8M0", (1, 2))
    several, *contradiction = checkpoint.problems()
    first = "'layers.0.ffn.experts.0.w1.weight' in model-00001-of-00002.safetensors"
    found = f"fp4 ({first}), fp8 ({W1!r} in {checkpoint.file.name})"
    assert several == f"{checkpoint.folder}: routed experts are stored in several formats: {found}"
    assert len(contradiction) == (declared is not None)


Damage = Callable[[Checkpoint, str], None]


def int8_of_flagos(checkpoint: Checkpoint, name: str) -> None:
    """FlagOS' quantize_int8_moe.py: I8 [out, in], scale `.weight.scale` BF16 [out]."""
    rows, packed = checkpoint.tensors[name][1]
    checkpoint.tensors[name] = ("I8", (rows, packed * 2))
    del checkpoint.tensors[name.removesuffix(".weight") + ".scale"]
    checkpoint.tensors[name + ".scale"] = ("BF16", (rows,))


def int8_renamed(checkpoint: Checkpoint, name: str) -> None:
    """The same after convert.py --expert-dtype int8: the scale is `.scale`."""
    int8_of_flagos(checkpoint, name)
    checkpoint.rename(name + ".scale", name.removesuffix(".weight") + ".scale")


def int8_that_fits_fp4(checkpoint: Checkpoint, name: str) -> None:
    """INT8 [out, in / 2] with a scale per channel: only the scale tells it from FP4."""
    rows, _ = checkpoint.tensors[name][1]
    checkpoint.tensors[name.removesuffix(".weight") + ".scale"] = ("BF16", (rows,))


@pytest.mark.parametrize("damage", [int8_of_flagos, int8_renamed, int8_that_fits_fp4])
def test_int8_experts_are_not_taken_for_fp4(checkpoint: Checkpoint, damage: Damage) -> None:
    experts = [name for name in checkpoint.tensors if ".experts." in name and name.endswith(".weight")]
    experts = [name for name in experts if ".shared_experts." not in name]
    for name in experts:
        damage(checkpoint, name)
    problems = checkpoint.problems()
    for name in experts:
        stem = name.removesuffix(".weight")
        assert any(repr(name) in problem or repr(stem + ".scale") in problem for problem in problems), name


def test_experts_that_are_all_missing_are_listed_not_a_crash(checkpoint: Checkpoint) -> None:
    """`inspect` asks a broken source for its expert format too."""
    checkpoint.tensors = {name: t for name, t in checkpoint.tensors.items() if ".experts." not in name}
    source, problems = survey_source(checkpoint.write())
    assert len(problems) == 16 * 3 * 4
    assert source.expert_format is None


# --- re-releases


def test_a_repack_with_plain_wo_a_is_understood(tmp_path: Path) -> None:
    """sgl-project's FP8 repacks: FP8 experts with E8M0 scales, wo_a in BF16 without one, no expert_dtype."""
    config = tiny_config()
    config.pop("expert_dtype", None)
    made = Checkpoint(tmp_path / "repack", config).fill(Stored(experts="fp8"))
    for name in [name for name in made.tensors if name.endswith(".attn.wo_a.weight")]:
        made.tensors[name] = "BF16", made.tensors[name][1]
        del made.tensors[name.replace(".weight", ".scale")]
    source = read_source(made.write())
    assert source.expert_format is not None
    assert source.expert_format.name == "fp8"
    for target in ("bf16:mp8", "fp8:hf", "native:hf", "int8:hf"):
        require_possible(parse_target(target), source)


def test_a_pruned_checkpoint_is_told_by_its_number_of_experts(tmp_path: Path) -> None:
    """REAP and REAM leave fewer experts; one whose config still has the old number is refused in one sentence."""
    made = Checkpoint(tmp_path / "pruned", tiny_config()).fill(Stored())
    kept = made.config["n_routed_experts"] // 2
    made.config["n_routed_experts"] = kept
    pruned = Checkpoint(made.folder, made.config).fill(Stored())
    assert read_source(pruned.write()).config.n_routed_experts == kept
    pruned.config["n_routed_experts"] = 2 * kept
    with pytest.raises(CheckpointError) as refused:
        read_source(pruned.write())
    assert str(refused.value) == (
        f"{made.folder / 'config.json'}: n_routed_experts is {2 * kept}, but every block stores experts 0 to "
        f"{kept - 1}: a pruned checkpoint must say n_routed_experts {kept}"
    )


@pytest.mark.parametrize("entry", [-1, 16, 2**40])
def test_a_table_that_names_an_expert_that_is_not_there_is_refused(tmp_path: Path, entry: int) -> None:
    """Token ids of the hash-routed layers are mapped to experts; whoever prunes experts must map them anew."""
    config = tiny_config()
    assert config["n_routed_experts"] == 16
    write_checkpoint(tmp_path, config)
    source = read_source(tmp_path)
    table = next(t.weight for t in source.tensors if t.spec.name == "layers.0.ffn.gate.tid2eid")
    token, place = 5, table.shape[1] - 1
    with table.file.open("r+b") as file:
        file.seek(table.begin + 8 * (token * table.shape[1] + place))
        file.write(entry.to_bytes(8, "little", signed=True))
    with pytest.raises(CheckpointError) as refused:
        read_source(tmp_path)
    assert str(refused.value) == (
        f"{table.file}: tensor 'layers.0.ffn.gate.tid2eid': expert {entry} for token {token}; the model has "
        f"experts 0 to 15 (1 such entries)"
    )


@pytest.mark.parametrize(
    "name", ["vision.patch_embed.proj.weight", "aligner.w1", "image_start", "layers.1.ffn.gate.bias_vl"]
)
def test_a_model_that_sees_is_refused_by_name(checkpoint: Checkpoint, name: str) -> None:
    checkpoint.tensors[name] = "BF16", (16, 16)
    with pytest.raises(
        CheckpointError, match=rf"{name}' is not part of this model \(a model that sees, such as DeepSeek-V4-Flash-Vi"
    ):
        read_source(checkpoint.write())
