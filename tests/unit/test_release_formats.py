"""Formats of releases by row and by 32: how headers are matched with them, and how targets are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagrelease.errors import CheckpointError
from flagrelease.formats.formats import FP4, FP8, FP8_CHANNEL, INT8, MXFP8, Format
from flagrelease.formats.match import match, pair_scales
from flagrelease.formats.releases import RELEASE_FORMATS, Kept, parse_format_and_layout
from flagrelease.model.tensors import Storage
from flagrelease.shard.header import TensorMeta

FILE = Path("model.safetensors")


def meta(name: str, dtype: str, *shape: int) -> TensorMeta:
    return TensorMeta(name, dtype, shape, FILE, 0, 0)


@pytest.mark.parametrize(
    ("weight", "scale", "wanted", "block"),
    [
        (("I8", 256, 512), (".weight_scale", "F32", 256, 1), INT8, (1, 512)),
        (("I8", 256, 512), (".weight_scale", "BF16", 256, 1), INT8, (1, 512)),
        (("F8_E4M3", 256, 512), (".weight_scale", "F32", 256, 1), FP8_CHANNEL, (1, 512)),
        (("F8_E4M3", 256, 512), (".weight_scale", "U8", 256, 16), MXFP8, (1, 32)),
        (("F8_E4M3", 256, 512), (".scale", "F8_E8M0", 2, 4), FP8, (128, 128)),
        (("I8", 256, 256), (".scale", "F8_E8M0", 256, 16), FP4, (1, 32)),
    ],
)
def test_what_tells_the_formats_apart(
    weight: tuple[str, int, int], scale: tuple[str, str, int, int], wanted: Format, block: tuple[int, int]
) -> None:
    suffix, *rest = scale
    found = match((256, 512), Storage.EXPERT.value, meta("a.weight", *weight), meta(f"a{suffix}", *rest), (128, 128))
    assert (found.format, found.block) == (wanted, block)


@pytest.mark.parametrize(
    ("weight", "scale", "said"),
    [
        # packed FP4 under the name that INT8's scales have, and INT8 under FP4's
        (("I8", 256, 256), (".weight_scale", "F32", 256, 1), "config.json gives"),
        (("I8", 256, 512), (".scale", "F32", 256, 1), "config.json gives"),
        (("F8_E4M3", 256, 512), (".weight_scale", "F8_E8M0", 2, 4), "dtype F8_E8M0"),
        (("F8_E4M3", 256, 512), (".weight_scale", "F32", 512, 1), "has \\[256, 1\\]"),
        (("U8", 256, 512), (".weight_scale", "F32", 256, 1), "has scales named .scale, .weight_scale_inv"),
    ],
)
def test_what_is_none_of_them(weight: tuple[str, int, int], scale: tuple[str, str, int, int], said: str) -> None:
    suffix, *rest = scale
    with pytest.raises(CheckpointError, match=said):
        match((256, 512), Storage.EXPERT.value, meta("a.weight", *weight), meta(f"a{suffix}", *rest), (128, 128))


def test_zero_points_stand_beside_a_scale() -> None:
    stored = [
        meta("a.weight", "I8", 4, 64),
        meta("a.weight_scale", "F32", 4, 1),
        meta("a.weight_offset", "F32", 4, 1),
        meta("b.weight", "I8", 4, 64),
        meta("b.weight_offset", "F32", 4, 1),
    ]
    problems: list[str] = []
    scales, offsets, others = pair_scales({one.name: one for one in stored}, problems)
    assert (scales.keys(), offsets.keys(), others.keys()) == (
        {"a.weight"},
        {"a.weight", "b.weight"},
        {"a.weight", "b.weight"},
    )
    assert problems == ["model.safetensors: 'b.weight_offset' has no scale of its dtype and shape beside it"]


def test_targets() -> None:
    assert parse_format_and_layout("int8:hf") == (RELEASE_FORMATS["int8"], None)
    assert parse_format_and_layout("fp8:mp16") == (RELEASE_FORMATS["fp8"], 16)
    for text, said in (
        ("int8:mp8", "exists in the hf layout only"),
        ("int4:hf", "is not FORMAT:LAYOUT with one of bf16, native"),
        ("fp8:mp0", "is not FORMAT:LAYOUT"),
        ("fp8", "is not FORMAT:LAYOUT"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_format_and_layout(text)


def test_which_weights_stay_bf16() -> None:
    """By hand from the vendors' lists of float modules (docs/stacks.md)."""

    def of(name: str, weight: str, **where: bool) -> object:
        return RELEASE_FORMATS[name].stored(weight, **({"expert": False, "mp": False} | where))

    assert of("w8a8-ascend", "layers.0.attn.wq_a.weight") is None
    assert of("w8a8-ascend", "layers.0.attn.wkv.weight") is None
    assert of("w8a8-ascend", "layers.0.attn.wq_b.weight") is INT8
    assert of("w8a8-ascend", "layers.0.attn.indexer.wq_b.weight") is INT8
    assert of("int8", "layers.0.attn.wkv.weight") is INT8
    assert of("int8", "layers.0.attn.wo_a.weight") is None
    assert of("int8-experts", "layers.0.attn.wo_b.weight") is None
    assert of("int8-experts", "layers.0.ffn.experts.0.w1.weight", expert=True) is INT8
    assert of("fp8", "layers.0.attn.wo_a.weight") is Kept.AS_STORED
    assert of("fp8", "layers.0.attn.wo_a.weight", mp=True) is None
    assert of("fp8-bf16-wo-a", "layers.0.attn.wo_a.weight") is None
