"""vllm-ascend's own writer of W8A8 folders as an oracle: the whole small model through both, tensor by tensor.

The writer is `examples/quantization/deepseek_v4/quantize.py` of vllm-project/vllm-ascend at 4fdcb97e (PR 15387), pure
torch. It is in no package: `--modelslim-writer FILE` names a copy, and this repository holds none of its code.

What was found: one set of names, dtypes, shapes and descriptions. Its scales are those of our `int8` under `absmax`,
bit for bit; those of our `w8a8-ascend` are the same, rounded to BF16, since vllm-ascend's parameters are BF16. Each
difference has its test or its comment here.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import variants
import yaml

from flagrelease.cli import main as flagrelease

pytestmark = [pytest.mark.slow, pytest.mark.consumers]
SOURCE = Path(__file__).parents[2] / "examples" / "tiny" / "flagrelease-tiny-v4"
RECIPE = SOURCE.parents[2] / "recipes" / "tiny.yaml"
PLANTED = "layers.0.ffn.experts.0.w1"  # its first row becomes zeros, its second one tiny
# What its README says of DeepSeek-V4-Flash: which modules are W8A8; all others stay as they are once decoded
FLASH = [
    {
        "include": ["*attn*"],
        "exclude": ["*attn.wq_a", "*attn.wkv", "*attn.wo_a", "*weights_proj", "*compressor.wgate", "*compressor.wkv"],
    },
    {"include": ["*ffn*"], "exclude": ["*gate"]},
    {"include": ["*e_proj", "*h_proj"]},
]


@dataclass(frozen=True)
class Folder:
    """A release: tensors by name, the description and config.json."""

    tensors: Mapping[str, torch.Tensor]
    description: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Folder:
        description = folder / "quant_model_description.json"
        return cls(
            variants.read(folder),
            json.loads(description.read_text(encoding="utf-8")) if description.exists() else {},
            json.loads((folder / "config.json").read_text(encoding="utf-8")),
        )

    @property
    def scales(self) -> list[str]:
        return [name for name in self.tensors if name.endswith(".weight_scale")]


@dataclass(frozen=True)
class Written:
    """One source through their writer and through ours: `w8a8-ascend` and `int8`, both with the rule absmax."""

    source: Mapping[str, torch.Tensor]
    theirs: Folder
    ours: Folder
    int8: Folder


def with_two_special_rows(folder: Path) -> Path:
    """The source with a row of zeros and a row whose largest value is 4e-8 in one expert."""

    def plant(tensors: variants.Tensors) -> variants.Tensors:
        weight, scale = tensors[f"{PLANTED}.weight"].clone(), tensors[f"{PLANTED}.scale"].clone()
        weight.view(torch.uint8)[0] = 0
        scale.view(torch.uint8)[1] = 127 - 27
        return {**tensors, f"{PLANTED}.weight": weight, f"{PLANTED}.scale": scale}

    out = variants.write(SOURCE, folder, None, None, {}, change=plant)
    names = dict.fromkeys(variants.read(out), "model.safetensors")
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return out


@pytest.fixture(scope="module")
def written(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Written:
    script = pytestconfig.getoption("--modelslim-writer")
    if script is None:
        pytest.skip("needs vllm-ascend's examples/quantization/deepseek_v4/quantize.py: --modelslim-writer FILE")
    spec = importlib.util.spec_from_file_location("modelslim_writer", script)
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    scratch = tmp_path_factory.mktemp("written")
    source = with_two_special_rows(scratch / "source")
    rules = scratch / "rules.yaml"
    rules.write_text(yaml.safe_dump({"spec": {"process": [{"type": "linear_quant", **rule} for rule in FLASH]}}))
    writer.main(str(source), str(scratch / "theirs"), str(rules))
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["source"]["path"] = str(source)
    recipe["convert"] |= {"lossy_repack": "allow", "int8_scale": "absmax"}
    (scratch / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for form in ("w8a8-ascend", "int8"):
        words = ["convert", str(scratch / "recipe.yaml"), "--target", f"{form}:hf", "--out", str(scratch)]
        assert flagrelease(words) == 0
    folders = [Folder.read(scratch / name) for name in ("theirs", "w8a8-ascend-hf", "int8-hf")]
    return Written(variants.read(source), *folders)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8)
    )


def test_names_dtypes_shapes_and_descriptions_are_theirs(written: Written) -> None:
    theirs, ours = written.theirs, written.ours
    form = {name: (tensor.dtype, tensor.shape) for name, tensor in theirs.tensors.items()}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in ours.tensors.items()} == form
    assert ours.description == theirs.description
    # without quantization_config nothing reads expert_dtype, which they leave behind
    assert theirs.config["expert_dtype"] == "fp4"
    assert ours.config == {key: value for key, value in theirs.config.items() if key != "expert_dtype"}


def test_what_is_not_quantised_has_their_bits(written: Written) -> None:
    """Norms, gates, sinks, the copies for the draft, and what is decoded: wq_a, wkv, wo_a."""
    stems = {name.removesuffix(".weight_scale") for name in written.theirs.scales}
    plain = [name for name in written.theirs.tensors if name.rpartition(".")[0] not in stems]
    assert len(plain) > 100
    assert [n for n in plain if not same_bits(written.theirs.tensors[n], written.ours.tensors[n])] == []
    offsets = [name for name in written.theirs.tensors if name.endswith(".weight_offset")]
    assert all(same_bits(written.theirs.tensors[name], written.ours.tensors[name]) for name in offsets)


def rows(name: str) -> slice:
    """The rows that can be compared: not the two planted ones."""
    return slice(2, None) if name.startswith(PLANTED) else slice(None)


def test_scales_are_theirs_as_their_loader_holds_them(written: Written) -> None:
    """They divide in float32 (a float32 zero turns BF16 maxima into float32) and store that; the loader rounds it."""
    changed = 0
    for name in written.theirs.scales:
        theirs, ours = written.theirs.tensors[name][rows(name)], written.ours.tensors[name][rows(name)]
        assert torch.equal(written.int8.tensors[name][rows(name)], theirs), name
        assert torch.equal(ours, theirs.to(torch.bfloat16).to(torch.float32)), name
        changed += int((ours != theirs).sum())
    assert changed > 0.9 * sum(len(written.theirs.tensors[name]) for name in written.theirs.scales)


def exact(written: Written, name: str) -> torch.Tensor:
    weight, scale = written.source[f"{name}.weight"], written.source[f"{name}.scale"]
    return variants.decoded(weight, scale).to(torch.float64)


def test_codes_are_theirs_but_for_ties_in_float32(written: Written) -> None:
    """Ours round a float64 quotient: what lies within 2e-6 of a half may fall on the other side of it."""
    differ = total = 0
    for scale in written.theirs.scales:
        name = scale.removesuffix(".weight_scale")
        theirs, ours = (
            folder.tensors[f"{name}.weight"][rows(scale)].to(torch.int16) for folder in (written.theirs, written.int8)
        )
        off = (theirs - ours).abs()
        quotient = exact(written, name)[rows(scale)] / written.theirs.tensors[scale][rows(scale)].to(torch.float64)
        from_a_half = (quotient - quotient.floor() - 0.5).abs()
        assert off.max() <= 1, name
        assert not (off.bool() & (from_a_half > 2e-6)).any(), name
        assert theirs.min() >= -127  # they clamp at -128, which a scale that is not rounded never reaches
        differ, total = differ + int(off.sum()), total + off.numel()
    assert 0 < differ < 0.002 * total


def test_codes_for_the_scales_that_the_loader_holds_are_nearer_to_the_source(written: Written) -> None:
    """The codes of `w8a8-ascend` belong to the rounded scale; theirs to one that vllm-ascend does not have."""
    lost = {"theirs": 0.0, "ours": 0.0}
    differ = total = 0
    for scale in written.theirs.scales:
        name, part = scale.removesuffix(".weight_scale"), rows(scale)
        held = written.ours.tensors[scale][part].to(torch.float64)
        source = exact(written, name)[part]
        codes = {"theirs": written.theirs.tensors[f"{name}.weight"], "ours": written.ours.tensors[f"{name}.weight"]}
        for who, one in codes.items():
            lost[who] += float(((one[part].to(torch.float64) * held - source) ** 2).sum())
        off = (codes["theirs"][part].to(torch.int16) - codes["ours"][part].to(torch.int16)).abs()
        assert off.max() <= 1
        differ, total = differ + int(off.sum()), total + off.numel()
    assert 0.05 < differ / total < 0.1
    assert (lost["theirs"] / lost["ours"]) ** 0.5 > 1.05


def test_rows_of_zeros_and_rows_below_their_floor_differ(written: Written) -> None:
    """They take 1e-5 for the largest value of a row at least: a row of zeros gets its scale, a tiny row its codes."""
    theirs, ours = (folder.tensors[f"{PLANTED}.weight_scale"][:2, 0] for folder in (written.theirs, written.ours))
    floor = torch.tensor(1e-5, dtype=torch.float32) / 127
    assert torch.equal(theirs, floor.repeat(2))
    assert ours[0] == 1
    source = exact(written, PLANTED)[1]
    assert ours[1] < floor / 100
    errors = [
        float((folder.tensors[f"{PLANTED}.weight"][1].to(torch.float64) * scale.to(torch.float64) - source).norm())
        / float(source.norm())
        for folder, scale in ((written.theirs, theirs[1]), (written.ours, ours[1]))
    ]
    assert errors[0] > 0.5
    assert errors[1] < 0.01
