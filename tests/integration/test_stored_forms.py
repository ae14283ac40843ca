"""convert, verify and the engine accept the same sources: every declared form, and nothing else.

They did not: FP4 stored as U8, `.weight_scale_inv`, and BF16 and F16 scales were converted, but refused by verify, the
engine, or both; verify took FP8 without a scale for a plain weight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flagrelease import cli, engine
from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP4, FP8_GROUP, SCALE_SUFFIXES, SOURCE_FORMATS, weight_of_scale
from flagrelease.model.synthetic import Stored, stored_tensors
from flagrelease.model.v4.config import parse_config
from flagrelease.model.v4.inventory import inventory
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.shard.header import TensorMeta, build_header, tensor_bytes
from flagrelease.shard.index import INDEX_NAME, open_checkpoint
from flagrelease.source.source import read_source
from flagrelease.verify.expectations import CopiedScale, Decoded, HashedTensor
from flagrelease.verify.gather import whole
from flagrelease.verify.origin import open_source
from flagrelease.verify.verify import verify_release

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 512, 40)]
FORMS = [  # the second name of a scale with the first type of each; with the others it is left to the slow set
    pytest.param(
        fmt.name, dtype, suffix, scale, id=f"{fmt.name}-{dtype}-{suffix}-{scale}",
        marks=[] if suffix == SCALE_SUFFIXES[0] or (dtype, scale) == (fmt.weight_dtypes[0], fmt.scale_dtypes[0])
        else pytest.mark.slow,
    )
    for fmt in SOURCE_FORMATS
    if fmt is not FP8_GROUP  # V4.1's Engram tables, which test_v41_conversion.py converts
    for dtype in fmt.weight_dtypes
    for suffix in SCALE_SUFFIXES
    for scale in fmt.scale_dtypes
]  # fmt: skip
WQ_A, WQ_A_SCALE = "layers.1.attn.wq_a.weight", "layers.1.attn.wq_a.scale"
W1, W1_SCALE = "layers.1.ffn.experts.3.w1.weight", "layers.1.ffn.experts.3.w1.scale"


def config_of(expert_dtype: str, block: tuple[int, int] = (128, 128)) -> dict[str, Any]:
    config = tiny_config(expert_dtype=expert_dtype, n_routed_experts=4)
    config["quantization_config"] = config["quantization_config"] | {"weight_block_size": list(block)}
    return config


def put(meta: TensorMeta, data: np.ndarray[Any, Any]) -> None:
    """Overwrite the first bytes of a stored tensor."""
    with meta.file.open("r+b") as file:
        file.seek(meta.begin)
        file.write(data.tobytes())


def vary_float_scales(folder: Path) -> None:
    """Scales that are no powers of two, as DeepSeek-V3's are not: products then have to be rounded."""
    for name, meta in open_checkpoint(folder).tensors.items():
        if weight_of_scale(name) is None or meta.dtype == "F8_E8M0":
            continue
        rng = np.random.default_rng(len(name))
        values = (np.exp2(rng.integers(-10, -7, meta.shape)) * rng.uniform(1, 2, meta.shape)).astype(np.float32)
        if meta.dtype == "F16":
            put(meta, values.astype(np.float16))
        else:
            put(meta, values if meta.dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16))


def logits(folder: Path, numerics: Any) -> torch.Tensor:
    found = engine.load(folder, numerics).logits(TOKENS)
    assert found.isfinite().all()
    return found


def check_everywhere(source: Path, out: Path, *targets: str) -> None:
    words = [word for target in targets for word in ("--target", target)]
    assert cli.main(["convert", str(source), "--out", str(out), *words]) == 0
    expected = logits(source, "bf16")
    for target in targets:
        release = out / target.replace(":", "-")
        report = verify_release(release, source)
        assert report.passed, report.to_json().decode()
        assert report.check("source").status == "pass"
        assert torch.equal(logits(release, "bf16"), expected), target
    assert torch.equal(logits(out / "native-hf", "native"), logits(source, "native"))


@pytest.mark.parametrize(("name", "dtype", "suffix", "scale"), FORMS)
def test_every_declared_form_goes_through_all_three(
    tmp_path: Path, name: Any, dtype: str, suffix: str, scale: str
) -> None:
    fp4 = name == FP4.name
    stored = Stored(name, "F8_E8M0" if fp4 else scale, suffix, dtype if fp4 else "I8")
    source = tmp_path / "source"
    write_checkpoint(source, config_of(name), stored)
    vary_float_scales(source)
    stored_as = open_checkpoint(source).tensors
    assert stored_as[W1].dtype == dtype
    assert stored_as[W1.removesuffix(".weight") + suffix].dtype == scale
    targets = ("bf16:hf", "native:hf", "native:mp1", *(("fp8:hf",) if fp4 else ()))
    check_everywhere(source, tmp_path / "out", *targets)


@pytest.mark.parametrize("scale", ["F8_E8M0", "F32"])
def test_blocks_that_no_kernel_takes_are_decoded_by_the_engine(tmp_path: Path, scale: str) -> None:
    """It died with a ValueError, which the README calls a bug."""
    source = tmp_path / "source"
    write_checkpoint(source, config_of("fp8", (64, 32)), Stored("fp8", scale))
    vary_float_scales(source)
    check_everywhere(source, tmp_path / "out", "bf16:hf", "native:hf")


def test_a_plain_linear_beside_one_in_codes(tmp_path: Path) -> None:
    """The engine joins layers that share an input; it refused this source, which convert accepts."""
    source = write_table(tmp_path / "source", config_of("fp4"), plain_linear, holes=False)
    check_everywhere(source, tmp_path / "out", "bf16:hf", "native:hf")


# --- what is in no declared form is refused by all three, in the same words

Table = dict[str, tuple[str, tuple[int, ...]]]


def write_table(folder: Path, config: dict[str, Any], edit: Callable[[Table], None], holes: bool = True) -> Path:
    """A checkpoint of one file whose headers were edited before writing."""
    parsed = parse_config(config, "config")
    table: Table = {}
    for spec in inventory(parsed).values():
        table |= {name: (dtype, shape) for name, dtype, shape in stored_tensors(spec, parsed, Stored())}
    edit(table)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text("{}")
    entries = [(name, dtype, shape) for name, (dtype, shape) in table.items()]
    file = folder / "model-00001-of-00001.safetensors"
    file.write_bytes(build_header(entries))
    total = sum(tensor_bytes(dtype, shape) for _, dtype, shape in entries)
    os.truncate(file, file.stat().st_size + total)
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(table, file.name)}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    if not holes:
        rng = np.random.default_rng(1)
        for meta in open_checkpoint(folder).tensors.values():
            if meta.dtype in ("BF16", "F32"):
                values = rng.standard_normal(meta.elements).astype(np.float32)
                put(meta, values if meta.dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16))
            elif meta.dtype != "I64":
                put(meta, rng.integers(110, 118, meta.nbytes, dtype=np.uint8))
    return folder


def plain_linear(table: Table) -> None:
    table[WQ_A] = ("BF16", table[WQ_A][1])
    del table[WQ_A_SCALE]


UNDECLARED: dict[str, Callable[[Table], Any]] = {
    "FP8 without a scale": lambda t: t.pop(WQ_A_SCALE),
    "FP4 without a scale": lambda t: t.pop(W1_SCALE),
    "a scale of a plain weight": lambda t: t.update({WQ_A: ("BF16", t[WQ_A][1])}),
    "a scale of a norm": lambda t: t.update({"layers.1.attn.q_norm.scale": ("F32", (1, 1))}),
    "a scale without a weight": lambda t: t.update({"layers.1.attn.wq_x.scale": ("F32", (1, 1))}),
    "two scales": lambda t: t.update({"layers.1.attn.wq_a.weight_scale_inv": t[WQ_A_SCALE]}),
    "an FP8 scale as bytes": lambda t: t.update({WQ_A_SCALE: ("U8", t[WQ_A_SCALE][1])}),
    "an FP4 scale in F32": lambda t: t.update({W1_SCALE: ("F32", t[W1_SCALE][1])}),
    "a scale without dimensions": lambda t: t.update({WQ_A_SCALE: ("F32", ())}),
    "a scale for each row": lambda t: t.update({WQ_A_SCALE: ("F32", (128, 1))}),
    "a scale for 16 elements": lambda t: t.update({W1_SCALE: ("F8_E8M0", (128, 16))}),
    "a linear in FP4": lambda t: t.update({WQ_A: ("I8", (128, 128)), WQ_A_SCALE: ("F8_E8M0", (128, 8))}),
    "an expert in E5M2": lambda t: t.update({W1: ("F8_E5M2", (128, 256))}),
    "FP4 with half the columns": lambda t: t.update({W1: ("I8", (128, 64))}),
    "F4 that counts bytes": lambda t: t.update({W1: ("F4", (128, 128))}),
    "a norm in FP8": lambda t: t.update({"layers.1.attn.q_norm.weight": ("F8_E4M3", (128,))}),
    "one expert in FP8": lambda t: t.update({W1: ("F8_E4M3", (128, 256)), W1_SCALE: ("F8_E8M0", (1, 2))}),
}  # fmt: skip


@pytest.mark.parametrize("form", UNDECLARED)
def test_undeclared_forms_are_refused_by_all_three_in_the_same_words(tmp_path: Path, form: str) -> None:
    source = write_table(tmp_path / "source", config_of("fp4"), UNDECLARED[form])
    said = []
    for read in (read_source, open_source, engine.load):
        with pytest.raises(CheckpointError) as caught:
            read(source)
        said.append(str(caught.value))
    assert len(set(said)) == 1, said
    assert "model-00001-of-00001.safetensors" in said[0]
    assert "layers." in said[0]


# --- what scales and codes may hold

BAD = [("F8_E8M0", 255)] + [
    (dtype, value) for dtype in ("F32", "BF16", "F16") for value in (np.nan, np.inf, -np.inf, -0.5)
]


@pytest.mark.parametrize(("dtype", "value"), BAD)
def test_a_scale_that_is_no_number_is_refused_by_all_three(
    tmp_path: Path, dtype: str, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine took them all; verify noticed E8M0's NaN only, and decoded with negative scales."""
    source = tmp_path / "source"
    write_checkpoint(source, config_of("fp8"), Stored("fp8", dtype))
    scale = open_checkpoint(source).tensors[WQ_A_SCALE]
    bits = np.array([value], np.uint8 if dtype == "F8_E8M0" else np.float16 if dtype == "F16" else np.float32)
    put(scale, (bits.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else bits)
    with pytest.raises(CheckpointError, match=rf"model-\d+-of-\d+.safetensors: scale '{WQ_A_SCALE}'.*is a finite"):
        engine.load(source, "native")
    assert cli.main(["convert", str(source), "--out", str(tmp_path / "out"), "--target", "native:hf"]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert WQ_A_SCALE in told
    assert "is a finite number" in told
    weight = open_source(source).weights[WQ_A]
    assert weight.format is not None
    decoded = Decoded(HashedTensor(whole(weight.weight)), HashedTensor(whole(scale)), weight.format, weight.block)
    copied = CopiedScale(HashedTensor(whole(scale)))
    copied.rows(0, scale.shape[0])
    for faults in (list(decoded.faults()), list(copied.faults())):
        assert [WQ_A_SCALE in fault and "is a finite number" in fault for fault in faults] == [True]


def test_a_code_that_is_nan_is_refused_by_the_engine_too(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_checkpoint(source, config_of("fp8"), Stored("fp8"))
    put(open_checkpoint(source).tensors[WQ_A], np.array([0xFF], np.uint8))
    with pytest.raises(CheckpointError, match=f"tensor '{WQ_A}': holds a code that is NaN"):
        engine.load(source, "native")


def test_a_zero_scale_is_a_block_of_zeros_for_all_three(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_checkpoint(source, config_of("fp8"), Stored("fp8", "F32"))
    put(open_checkpoint(source).tensors[WQ_A_SCALE], np.zeros(1, np.float32))
    check_everywhere(source, tmp_path / "out", "bf16:hf", "native:hf")
