"""mpN against the facts: shard shapes (5.2), sizes and tensor counts per rank (5.3), o-groups (5.4), refused N.

Sizes are those of full-size Flash and Pro, whose headers are generated here; the numbers were computed elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagrelease.convert.planning.layouts import (
    Region,
    TensorParallel,
    divisibility_problem,
    matrix_shape,
    tensor_parallel,
)
from flagrelease.convert.planning.parts import Part, cut, parts_of, require_whole_blocks
from flagrelease.convert.planning.plan import Plan, make_plan
from flagrelease.convert.planning.target import Action, Target, parse_target
from flagrelease.errors import UsageError
from flagrelease.model.tensors import Split, Storage, TensorSpec
from flagrelease.model.v4.config import ModelConfig, native_arguments, parse_config
from flagrelease.model.v4.inventory import inventory
from flagrelease.model.v4.synthetic import tiny_config
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import Source

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"
MODELS = ("flash", "pro")


def config_of(model: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{model}.json").read_text())
    return config


@pytest.fixture(scope="module")
def sources(full_size: Callable[[str], Source]) -> dict[str, Source]:
    return {model: full_size(model) for model in MODELS}


def parse(model: str) -> ModelConfig:
    return parse_config(config_of(model), model)


# --- facts 5.3

# model, mp, dtype, o_groups: GiB a rank, tensors a rank, GiB of all ranks
PER_RANK = [
    ("flash", 8, "native", "shared", 20.61, 10_007, 164.9),
    ("flash", 8, "bf16", "shared", 70.77, 5_452, 566.1),
    ("flash", 16, "native", "shared", 11.63, 5_783, 186.0),
    ("flash", 16, "native", "split", 11.37, 5_783, 181.9),
    ("flash", 16, "bf16", "shared", 37.45, 3_340, 599.2),
    ("flash", 16, "bf16", "split", 37.11, 3_340, 593.7),
    ("flash", 32, "native", "shared", 7.13, 3_671, 228.3),
    ("flash", 32, "native", "split", 6.75, 3_671, 215.9),
    ("flash", 32, "bf16", "shared", 20.79, 2_284, 665.3),
    ("flash", 32, "bf16", "split", 20.28, 2_284, 648.8),
    ("pro", 8, "native", "shared", 107.16, 20_062, 857.3),
    ("pro", 8, "bf16", "shared", 382.46, 10_668, 3_059.7),
    ("pro", 16, "native", "shared", 57.02, 11_134, 912.3),
    ("pro", 16, "bf16", "shared", 197.04, 6_204, 3_152.7),
    ("pro", 32, "native", "shared", 32.40, 6_670, 1_036.7),
    ("pro", 32, "native", "split", 31.94, 6_670, 1_022.2),
    ("pro", 32, "bf16", "shared", 105.00, 3_972, 3_360.1),
    ("pro", 32, "bf16", "split", 104.34, 3_972, 3_338.7),
]


def ranks_of(source: Source, target: Target) -> list[dict[str, int]]:
    """Of each rank, its tensors with their bytes."""
    assert target.mp is not None
    layout = tensor_parallel(source.config, target.mp, target.o_groups)
    ranks: list[dict[str, int]] = [{} for _ in range(target.mp)]
    for tensor in source.tensors:
        parts = parts_of(tensor, target.action(tensor), target)
        for rank, region in layout.regions(tensor.spec):
            for part in parts:
                require_whole_blocks(part, region, tensor.spec, target)
                assert part.name not in ranks[rank]
                ranks[rank][part.name] = cut(part, region).nbytes
    return ranks


@pytest.mark.parametrize(("model", "mp", "dtype", "o_groups", "gib", "tensors", "all_gib"), PER_RANK)
def test_sizes_and_tensors_of_every_rank(
    sources: dict[str, Source], model: str, mp: int, dtype: Any, o_groups: Any, gib: float, tensors: int, all_gib: float
) -> None:
    ranks = ranks_of(sources[model], Target(dtype, mp, o_groups))
    assert {len(rank) for rank in ranks} == {tensors}
    sizes = {sum(rank.values()) for rank in ranks}
    assert len(sizes) == 1  # all ranks hold the same number of bytes
    assert round(max(sizes) / 2**30, 2) == gib
    assert round(sum(sum(rank.values()) for rank in ranks) / 2**30, 1) == all_gib


@pytest.mark.parametrize(
    ("model", "dtype", "gib"),
    [("flash", "native", 2.13), ("flash", "bf16", 3.45), ("pro", "native", 6.87), ("pro", "bf16", 11.63)],
)
def test_replicated_part_of_a_rank(sources: dict[str, Source], model: str, dtype: Any, gib: float) -> None:
    source, target = sources[model], Target(dtype, 8)
    replicated = sum(
        part.nbytes
        for tensor in source.tensors
        if tensor.spec.split is Split.NONE
        for part in parts_of(tensor, target.action(tensor), target)
    )
    assert round(replicated / 2**30, 2) == gib


def test_planned_files_hold_what_the_ranks_hold(sources: dict[str, Source]) -> None:
    """The plan of the real Flash: a file a rank, as DeepSeek's loader opens it; header and tensors, no more."""
    source = sources["flash"]
    for text in ("native:mp8", "bf16:mp16"):
        target = parse_target(text)
        assert target.mp is not None
        plan: Plan = make_plan(source, [target], ConvertSpec())
        assert [file.name for file in plan.files] == [f"model{r}-mp{target.mp}.safetensors" for r in range(target.mp)]
        for file, rank in zip(plan.files, ranks_of(source, target), strict=True):
            assert file.size == len(file.header) + sum(rank.values())
            document = json.loads(file.header[8:])
            assert document.pop("__metadata__") == {"format": "pt"}
            spans = {name: e["data_offsets"][1] - e["data_offsets"][0] for name, e in document.items()}
            assert spans.keys() == rank.keys()
            assert [name for name in spans if spans[name] != rank[name]] == []


# --- facts 5.2


def shard(source: Source, target: Target, name: str, rank: int = 0) -> dict[str, tuple[int, ...]]:
    """Header shapes of what one rank holds of a tensor: `weight` and, if it keeps one, `scale`."""
    assert target.mp is not None
    layout = tensor_parallel(source.config, target.mp, target.o_groups)
    tensor = next(tensor for tensor in source.tensors if tensor.spec.name in {name, f"{name}.weight"})
    region = dict(layout.regions(tensor.spec))[rank]
    parts = parts_of(tensor, target.action(tensor), target)
    return {part.role: cut(part, region).shape(part) for part in parts}


@pytest.mark.parametrize(
    ("model", "mp", "wq_b", "indexer_wq_b", "heads", "sink", "vocabulary"),
    [
        ("flash", 8, (4096, 32), (1024, 8), 8, 8, 16_160),
        ("flash", 16, (2048, 16), (512, 4), 4, 4, 8_080),
        ("pro", 8, (8192, 64), (1024, 8), 8, 16, 16_160),
        ("pro", 16, (4096, 32), (512, 4), 4, 8, 8_080),
    ],
)
def test_shard_rows(
    sources: dict[str, Source],
    model: str,
    mp: int,
    wq_b: Any,
    indexer_wq_b: Any,
    heads: int,
    sink: int,
    vocabulary: int,
) -> None:
    source, target = sources[model], Target("native", mp)
    for name, (rows, scale_rows) in (("layers.2.attn.wq_b", wq_b), ("layers.2.attn.indexer.wq_b", indexer_wq_b)):
        columns = source.config.q_lora_rank
        for rank in (0, mp - 1):
            assert shard(source, target, name, rank) == {
                "weight": (rows, columns),
                "scale": (scale_rows, columns // 128),
            }
    hidden = source.config.hidden_size
    assert shard(source, target, "layers.2.attn.indexer.weights_proj") == {"weight": (heads, hidden)}
    assert shard(source, target, "layers.2.attn.attn_sink") == {"weight": (sink,)}
    for name in ("embed", "head"):
        assert shard(source, target, name) == {"weight": (vocabulary, hidden)}


@pytest.mark.parametrize(
    ("model", "mp", "o_groups", "wo_a", "wo_b", "wo_b_scale"),
    [
        ("flash", 8, "shared", (1024, 4096), (4096, 1024), (32, 8)),
        ("flash", 16, "shared", (1024, 4096), (4096, 1024), (32, 8)),
        ("flash", 16, "split", (1024, 2048), (4096, 512), (32, 4)),
        ("flash", 32, "split", (1024, 1024), (4096, 256), (32, 2)),
        ("pro", 8, "shared", (2048, 4096), (7168, 2048), (56, 16)),
        ("pro", 16, "shared", (1024, 4096), (7168, 1024), (56, 8)),
        ("pro", 32, "shared", (1024, 4096), (7168, 1024), (56, 8)),
    ],
)
def test_shards_of_the_o_projection(
    sources: dict[str, Source], model: str, mp: int, o_groups: Any, wo_a: Any, wo_b: Any, wo_b_scale: Any
) -> None:
    """wo_a is BF16 in every mp checkpoint, so it has no scale."""
    for dtype in ("native", "bf16"):
        target = Target(dtype, mp, o_groups)
        assert shard(sources[model], target, "layers.2.attn.wo_a") == {"weight": wo_a}
        expected = {"weight": wo_b} if dtype == "bf16" else {"weight": wo_b, "scale": wo_b_scale}
        assert shard(sources[model], target, "layers.2.attn.wo_b") == expected


def test_experts_are_f4_of_logical_shape_or_fp8_with_tiles(sources: dict[str, Source]) -> None:
    """Facts 2.7 and 2.8: an F4 header has the logical shape; FP8 experts have E8M0 per 128 x 128, and F32 in hf: vLLM
    copies the bytes of E8M0 scales of FP8 experts into float32 (serving stacks, 1)."""
    tensor = next(t for t in sources["flash"].tensors if t.spec.name == "layers.2.ffn.experts.5.w2.weight")
    name = "layers.2.ffn.experts.5.w2"
    for target, weight, scale in (
        ("native:mp8", ("F4", (4096, 2048)), ("F8_E8M0", (4096, 64))),
        ("native:hf", ("I8", (4096, 1024)), ("F8_E8M0", (4096, 64))),
        ("fp8:mp8", ("F8_E4M3", (4096, 2048)), ("F8_E8M0", (32, 16))),
        ("fp8:hf", ("F8_E4M3", (4096, 2048)), ("F32", (32, 16))),
        ("fp8-e8m0:hf", ("F8_E4M3", (4096, 2048)), ("F8_E8M0", (32, 16))),
    ):
        parsed = parse_target(target)
        parts = parts_of(tensor, parsed.action(tensor), parsed)
        assert [(p.name, p.dtype, p.shape) for p in parts] == [(f"{name}.weight", *weight), (f"{name}.scale", *scale)]
    (only,) = parts_of(tensor, Action.DECODE, parse_target("bf16:hf"))
    assert (only.name, only.dtype, only.shape) == (f"{name}.weight", "BF16", (4096, 2048))


@pytest.mark.parametrize(
    ("model", "mp", "count"), [("flash", 8, 32), ("flash", 16, 16), ("pro", 8, 48), ("pro", 16, 24)]
)
def test_experts_are_contiguous_ranges_under_global_ids(model: str, mp: int, count: int) -> None:
    config = parse(model)
    layout = tensor_parallel(config, mp, "shared")
    owners: dict[int, list[int]] = {}
    for spec in inventory(config).values():
        if spec.split is Split.EXPERT and spec.name.startswith("mtp.0.") and spec.name.endswith("w1.weight"):
            ((rank, region),) = layout.regions(spec)
            assert region == Region(0, spec.shape[0], 0, spec.shape[1])
            owners.setdefault(rank, []).append(int(spec.name.split(".")[4]))
    assert owners == {rank: list(range(rank * count, (rank + 1) * count)) for rank in range(mp)}


# --- which tensors are cut, and how (5.1)


def by_hand(name: str) -> str:
    """Facts 5.1, by whole components of the name."""
    parts = name.removesuffix(".weight").split(".")
    if "experts" in parts:
        return "expert"
    if parts in (["embed"], ["head"]) or parts[-1] in {"wq_b", "attn_sink", "weights_proj", "markov_w1", "markov_w2"}:
        return "rows"
    return {"wo_a": "o rows", "wo_b": "o columns"}.get(parts[-1], "all")


SPLITS = {
    Split.NONE: "all", Split.ROWS: "rows", Split.EXPERT: "expert", Split.O_GROUP_ROWS: "o rows",
    Split.O_GROUP_COLUMNS: "o columns",
}  # fmt: skip


@pytest.mark.parametrize("model", [*MODELS, "dspark"])
def test_every_tensor_is_cut_as_the_facts_say(model: str) -> None:
    dspark = {
        "dspark_block_size": 5, "dspark_noise_token_id": 1, "dspark_target_layer_ids": [0, 1, 2],
        "dspark_markov_rank": 256, "compress_ratios": [0, 4, 128, 0, 0, 0],
    }  # fmt: skip
    config = parse_config(tiny_config(**dspark), model) if model == "dspark" else parse(model)
    for spec in inventory(config).values():
        assert SPLITS[spec.split] == by_hand(spec.name), spec.name


def coverage(layout: TensorParallel, spec: TensorSpec) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Of each rank, which elements of a tensor it holds."""
    for rank, region in layout.regions(spec):
        held = np.zeros(matrix_shape(spec.shape), dtype=bool)
        held[region.row0 : region.row1, region.col0 : region.col1] = True
        yield rank, held


@pytest.mark.parametrize("mp", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("o_groups", ["shared", "split"])
def test_ranks_together_hold_everything_and_nothing_twice(mp: int, o_groups: Any) -> None:
    """Replicated tensors apart. `shared` has npg copies of wo_a and wo_b where mp > o_groups; `split` has none."""
    config = parse_config(tiny_config(o_lora_rank=16, hidden_size=64, vocab_size=64), "tiny")
    layout = tensor_parallel(config, mp, o_groups)
    npg = max(1, mp // config.o_groups)
    for spec in inventory(config).values():
        ranks = [rank for rank, _ in coverage(layout, spec)]
        held = np.sum([mask for _, mask in coverage(layout, spec)], axis=0)
        if spec.split is Split.NONE:
            assert ranks == list(range(mp))
            assert (held == mp).all()
        elif spec.split in {Split.O_GROUP_ROWS, Split.O_GROUP_COLUMNS} and o_groups == "shared":
            assert ranks == list(range(mp))
            assert (held == npg).all(), spec.name
        else:
            assert (held == 1).all(), spec.name


@pytest.mark.parametrize("mp", [16, 32])
def test_shared_o_groups_are_flagos_s(mp: int) -> None:
    """Facts 5.4: pieces are cut into o_groups, rank r takes piece r // npg: consecutive ranks share one."""
    config = parse("flash")
    npg = mp // 8
    layout = tensor_parallel(config, mp, "shared")
    wo_a, wo_b = (inventory(config)[f"layers.0.attn.{name}.weight"] for name in ("wo_a", "wo_b"))
    for rank in range(mp):
        piece = rank // npg
        assert dict(layout.regions(wo_a))[rank] == Region(piece * 1024, (piece + 1) * 1024, 0, 4096)
        assert dict(layout.regions(wo_b))[rank] == Region(0, 4096, piece * 1024, (piece + 1) * 1024)


@pytest.mark.parametrize("mp", [16, 32, 64])
def test_split_o_groups_cut_wo_a_along_the_rank_s_own_heads(mp: int) -> None:
    """Rank r computes heads [r, r + 1) * 64 / mp; they lie in o-group r * 8 // mp, at the columns of wo_a held."""
    config = parse("flash")
    layout = tensor_parallel(config, mp, "split")
    wo_a, wo_b = (inventory(config)[f"layers.0.attn.{name}.weight"] for name in ("wo_a", "wo_b"))
    heads = 64 // mp
    for rank in range(mp):
        first = rank * heads
        group, inside = divmod(first, 8)  # 64 heads in 8 groups
        expected = Region(group * 1024, (group + 1) * 1024, inside * 512, (inside + heads) * 512)
        assert dict(layout.regions(wo_a))[rank] == expected
        assert dict(layout.regions(wo_b))[rank] == Region(0, 4096, rank * 8192 // mp, (rank + 1) * 8192 // mp)


@pytest.mark.parametrize("mp", [1, 2, 4, 8])
def test_both_o_group_layouts_are_one_up_to_o_groups(mp: int) -> None:
    config = parse("flash")
    shared, split = tensor_parallel(config, mp, "shared"), tensor_parallel(config, mp, "split")
    assert (shared.o_groups, split.o_groups) == (None, None)
    for spec in inventory(config).values():
        assert shared.regions(spec) == split.regions(spec)


# --- which N


@pytest.mark.parametrize("text", ["bf16:hf", "fp8:mp1", "native:mp16", "bf16:mp100000"])
def test_target_is_written_as_it_is_read(text: str) -> None:
    target = parse_target(text)
    assert str(target) == text
    assert target.folder == text.replace(":", "-")


@pytest.mark.parametrize(
    "text",
    [
        "", "bf16", "bf16:", ":hf", "bf16:mp", "bf16:mp0", "bf16:mp08", "bf16:mp-8", "bf16:mp8.0", "BF16:hf", "bf16:HF",
        "int8:mp8", "int4:hf", "bf16:hf ", " bf16:hf", "bf16:hf\n", "bf16:mp٨", "bf16:mp" + "1" * 5000, "bf16:hf:hf",
        "bf16-mp8",
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_text_that_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not FORMAT:LAYOUT|hf layout only"):
        parse_target(text)


def test_refused_numbers_of_ranks_are_explained() -> None:
    for model, mp, said in (
        ("flash", 3, "n_routed_experts 256 is not divisible by 3"),
        ("flash", 128, "num_attention_heads 64 is not divisible by 128"),
        ("flash", 0, "n_routed_experts 256 is not divisible by 0"),
        ("flash", -8, "n_routed_experts 256 is not divisible by -8"),
        ("pro", 24, "vocab_size 129280 is not divisible by 24"),
        ("pro", 128, "index_n_heads 64 is not divisible by 128"),
    ):
        with pytest.raises(UsageError) as caught:
            tensor_parallel(parse(model), mp, "shared")
        assert str(caught.value) == f"mp{mp}: {said}; this model can be cut into mp 1, 2, 4, 8, 16, 32, 64"


def test_o_groups_that_do_not_nest_are_refused() -> None:
    sizes = {"num_attention_heads": 24, "index_n_heads": 24, "n_routed_experts": 24, "vocab_size": 480, "o_groups": 6}
    config = parse_config(tiny_config(**sizes), "odd")
    assert divisibility_problem(config, 4) == "neither of mp 4 and o_groups 6 divides the other"
    assert divisibility_problem(config, 3) is None
    assert divisibility_problem(config, 12) is None
    narrow = config.model_copy(update={"o_lora_rank": 3})
    assert divisibility_problem(narrow, 12) == "o_groups * o_lora_rank 18 is not divisible by 12"


@st.composite
def small_models(draw: st.DrawFn) -> ModelConfig:
    o_groups = draw(st.integers(1, 12))
    config = tiny_config(
        num_hidden_layers=1, num_hash_layers=0, num_nextn_predict_layers=0, compress_ratios=[4], o_groups=o_groups,
        num_attention_heads=o_groups * draw(st.integers(1, 4)), o_lora_rank=draw(st.integers(1, 6)),
        n_routed_experts=draw(st.integers(1, 24)), vocab_size=draw(st.integers(1, 48)),
        index_n_heads=draw(st.integers(1, 24)), head_dim=2, qk_rope_head_dim=2, hidden_size=4, q_lora_rank=2,
        moe_intermediate_size=2, index_head_dim=2,
    )  # fmt: skip
    return parse_config(config, "small")


@settings(max_examples=300, deadline=None)
@given(config=small_models(), mp=st.integers(1, 24), o_groups=st.sampled_from(["shared", "split"]))
def test_accepted_numbers_cut_without_remainder(config: ModelConfig, mp: int, o_groups: Any) -> None:
    """Accepted: all ranks hold equally much of every tensor, nothing is missing. Refused: something does not divide."""
    counts = (config.n_routed_experts, config.vocab_size, config.num_attention_heads, config.index_n_heads)
    divides = not any(n % mp for n in (*counts, config.o_groups * config.o_lora_rank))
    nests = not (mp % config.o_groups and config.o_groups % mp)
    if divisibility_problem(config, mp) is not None:
        assert not (divides and nests)
        return
    assert divides
    assert nests
    layout = tensor_parallel(config, mp, o_groups)
    for spec in inventory(config).values():
        masks = list(coverage(layout, spec))
        assert np.any([mask for _, mask in masks], axis=0).all(), spec.name
        if spec.split is not Split.EXPERT:
            assert {int(mask.sum()) for _, mask in masks} == {int(masks[0][1].sum())}
            assert [rank for rank, _ in masks] == list(range(mp))


def test_cut_inside_a_block_is_refused_with_tensor_edge_and_block() -> None:
    part, target = Part("x.scale", "F8_E8M0", (3, 2), True, (128, 128)), parse_target("fp8:mp2")
    spec = TensorSpec("x.weight", (300, 256), Storage.LINEAR, Split.ROWS)
    require_whole_blocks(part, Region(128, 300, 0, 128), spec, target)  # the ragged last block ends at the edge
    for region, what in ((Region(0, 64, 0, 256), "row 64"), (Region(0, 300, 100, 256), "column 100")):
        said = rf"fp8:mp2: tensor 'x\.weight' of \[300, 256\] would be cut at {what}, inside a block of \[128, 128\]"
        with pytest.raises(UsageError, match=said):
            require_whole_blocks(part, region, spec, target)


@pytest.mark.parametrize(
    ("part", "region", "rows", "columns"),
    [
        (Part("w", "BF16", (300, 256)), Region(100, 200, 64, 128), (100, 200), (128, 256)),
        (Part("w", "F8_E4M3", (300, 256)), Region(0, 300, 64, 128), (0, 300), (64, 128)),
        (Part("w", "I8", (300, 128), False, (1, 2)), Region(0, 300, 64, 128), (0, 300), (32, 64)),
        (Part("w", "F4", (300, 256)), Region(0, 300, 64, 128), (0, 300), (32, 64)),
        (Part("s", "F8_E8M0", (3, 2), True, (128, 128)), Region(128, 300, 128, 256), (1, 3), (1, 2)),
        (Part("s", "F32", (3, 2), True, (128, 128)), Region(0, 128, 128, 256), (0, 1), (4, 8)),
        (Part("s", "F8_E8M0", (300, 8), True, (1, 32)), Region(10, 20, 64, 128), (10, 20), (2, 4)),
        (Part("v", "F32", (64,)), Region(8, 16, 0, 1), (8, 16), (0, 4)),
    ],
    ids=lambda value: value.dtype if isinstance(value, Part) else "",
)
def test_bytes_of_a_region(part: Part, region: Region, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    found = cut(part, region)
    assert ((found.row0, found.row1), (found.byte0, found.byte1)) == (rows, columns)
    assert found.nbytes == (rows[1] - rows[0]) * (columns[1] - columns[0])
    elements = math.prod(found.shape(part))
    assert found.nbytes == elements * {"BF16": 2, "F32": 4, "F4": 0.5}.get(part.dtype, 1)


# --- the configs used here


def test_pro_config_gives_pro_s_published_inference_config() -> None:
    """Pro's config.json here is Flash's with the differences of facts 2.4; its native config is FlagOS' publication.

    They disagree in one number, which decides no tensor: the facts say 1024, FlagOS' file has Flash's 512.
    """
    published = json.loads((CONFIGS / "pro-inference.json").read_text())
    ours = native_arguments(parse("pro"))
    assert ours.keys() == published.keys() - {"dtype", "scale_fmt", "expert_dtype"}
    assert {key: (ours[key], published[key]) for key in ours if ours[key] != published[key]} == {
        "index_topk": (1024, 512)
    }
