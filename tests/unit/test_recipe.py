"""Recipes: every shipped one is planned at full size; what a recipe may not say is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagrelease.chips.listing.sizes import ReleaseSize, planned_sizes
from flagrelease.chips.table import load_chips
from flagrelease.convert import request as request_module
from flagrelease.convert.planning.fit import card_fit, hub_problems
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.request import make_request
from flagrelease.errors import UsageError
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.model.v41 import synthetic as v41_synthetic
from flagrelease.records.convert_spec import parse_bytes
from flagrelease.records.recipe import Recipe, read_recipe
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.source import Source, read_source

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
# Flash's plan stands for them
_MINUTES = ("deepseek-v4-flash-0731", "deepseek-v4-pro", "deepseek-v4-pro-0813", "deepseek-v4.1-flash")
FULL_SIZE = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in _MINUTES else []) for path in SHIPPED
]


def config_of(recipe: Path) -> dict[str, Any]:
    if recipe.stem.startswith("tiny"):
        folder = recipe.stem.replace("tiny", "flagrelease-tiny-v4")
        tiny: dict[str, Any] = json.loads((ROOT / "examples" / "tiny" / folder / "config.json").read_text())
        return tiny
    if recipe.stem.startswith("deepseek-v4.1"):
        v41: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "configs" / "v41-flash.json").read_text())
        return v41
    flash: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "configs" / "flash.json").read_text())
    pro = {
        "hidden_size": 7168, "index_topk": 1024, "moe_intermediate_size": 3072, "n_routed_experts": 384,
        "num_attention_heads": 128, "num_hidden_layers": 61, "o_groups": 16, "q_lora_rank": 1536,
        "routed_scaling_factor": 2.5, "expert_dtype": "fp4", "compress_ratios": [128, 128] + 29 * [4, 128] + [4, 0],
    }  # fmt: skip
    found = flash | (pro if "-pro" in recipe.stem else {})
    if recipe.stem.endswith(("0731", "0813")):  # as DeepSeek's configs of the two releases with DSpark
        rank, layers = (512, [58, 59, 60]) if "-pro" in recipe.stem else (256, [40, 41, 42])
        found |= {
            "dspark_block_size": 5, "dspark_noise_token_id": 128799, "dspark_markov_rank": rank,
            "dspark_target_layer_ids": layers, "compress_ratios": [*found["compress_ratios"], 0, 0],
        }  # fmt: skip
    return found


@pytest.fixture
def checkpoint_for(
    full_size: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Path], Path]:
    """The folder of a checkpoint that a recipe is for, read once however often the test asks; Flash's once for all."""

    def made(recipe: Path) -> Path:
        if recipe.stem == "deepseek-v4-flash":
            source = full_size("flash")
        else:
            config = config_of(recipe)
            write = v41_synthetic.write_checkpoint if "text_config" in config else write_checkpoint
            write(tmp_path / "checkpoint", config, holes=True)
            source = read_source(tmp_path / "checkpoint")

        def read(files: CheckpointFiles, told: object) -> Source:
            assert files.root == source.root
            return source

        monkeypatch.setattr(request_module, "read_source", read)
        return Path(source.root)

    return made


@pytest.mark.parametrize("path", FULL_SIZE)
def test_every_shipped_recipe_fits_its_chips_and_hubs_at_full_size(
    path: Path, checkpoint_for: Callable[[Path], Path]
) -> None:
    request = make_request(path, checkpoint_for(path), [], [], None)
    plan = make_plan(request.source, request.targets, request.options, request.provenance)
    chips = load_chips()
    assert {one.chip.id for one in request.chips} == set(read_recipe(path).releases)
    if (sizes := planned_sizes().get(read_recipe(path).model)) is not None:
        found = {
            release.target.folder: ReleaseSize(
                bytes=sum(file.size for file in release.files), rank_bytes=release.rank_size
            )
            for release in plan.releases
        }
        assert (sizes.source_bytes, sizes.releases) == (request.source.index.total_size, found), "sizes.yaml"
    for release in plan.releases:
        assert hub_problems(release, request.hubs) == []
    for one in request.chips:
        if one.target.mp is not None:
            assert one.target.dtype == chips[one.chip.id].release_dtype
            assert card_fit(request.source, one.target, one.chip.memory_gib << 30).fits, one
    bf16 = {one.target for one in request.chips if one.target.dtype == "bf16"}
    assert len(bf16) <= 1, "the BF16 chips share one conversion"
    assert bf16 or "deepseek-v4.1" in path.stem, "no stack is known that loads V4.1 in BF16"


def test_the_shipped_recipes_are_those_promised() -> None:
    models = {read_recipe(path).model for path in SHIPPED}
    assert models == {
        "DeepSeek-V4-Flash", "DeepSeek-V4-Flash-0731", "DeepSeek-V4-Pro", "DeepSeek-V4-Pro-0813", "DeepSeek-V4.1-Flash",
        "flagrelease-tiny-v4", "flagrelease-tiny-v4-dspark",
    }  # fmt: skip
    for flash in ("deepseek-v4-flash", "deepseek-v4-flash-0731"):
        assert set(read_recipe(ROOT / "recipes" / f"{flash}.yaml").releases) == set(load_chips())
    assert {read_recipe(path).source.license for path in SHIPPED if "deepseek" in path.stem} == {"MIT"}


GOOD: dict[str, Any] = {
    "schema_version": 1,
    "model": "M",
    "source": {"repo": "a/b", "revision": "c", "license": "MIT"},
    "releases": {"ascend": {"dtype": "bf16", "layout": "mp8"}},
}


def write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"schema_version": 2}, "schema_version"),
        ({"source": {"repo": "a/b", "license": "MIT"}}, "source.revision: Field required"),
        ({"releases": {}}, "releases"),
        ({"releases": {"abacus": {"dtype": "bf16", "layout": "hf"}}}, "'abacus' is not in the table"),
        ({"releases": {"moore": {"dtype": "fp8", "layout": "hf"}}}, "'moore' is an alias; write 'mthreads'"),
        ({"releases": {"ascend": {"dtype": "int4", "layout": "hf"}}}, "releases.ascend.0.format"),
        ({"releases": {"ascend": {"dtype": "bf16", "layout": "tp8"}}}, "layout"),
        ({"releases": {"ascend": {"dtype": "bf16", "layout": "mp8", "o_groups": "twice"}}}, "o_groups"),
        ({"convert": {"max_file_bytes": "five"}}, "convert.max_file_bytes"),
        ({"convert": {"max_file_bytes": 0}}, "convert.max_file_bytes"),
        ({"convert": {"lossy_repack": "maybe"}}, "lossy_repack"),
        ({"hubs": ["github"]}, "hubs"),
        ({"languages": ["english"]}, "languages.0"),
        ({"model": "../etc"}, "model"),
        ({"validation": {"stages": ["vibes"]}}, "validation.stages"),
        ({"validation": {"behaviour": {"loops": 1}}}, "validation.behaviour.loops: Extra inputs"),
        ({"validation": {"behaviour": {"temperature": 0}}}, "validation.behaviour: .*the same answer 8 times"),
    ],
)
def test_what_a_recipe_may_not_say(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_recipe(write(tmp_path / "r.yaml", GOOD | change))
    assert "r.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "line 1: not a valid recipe"),
        ("model: a\nmodel: b\n", "'model' appears twice"),
        ("- a\n", "recipe"),
        ("", "recipe"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_what_is_no_recipe(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_recipe(write(tmp_path / "r.yaml", text))


def test_greedy_behaviour_is_asked_for_once(tmp_path: Path) -> None:
    document = GOOD | {"validation": {"behaviour": {"temperature": 0, "repeats": 1}}}
    assert read_recipe(write(tmp_path / "r.yaml", document)).validation.behaviour.repeats == 1


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "count"), [("5 GB", 5 * 10**9), ("48GiB", 48 * 2**30), ("1.5 MB", 1_500_000), ("7", 7), (9, 9)]
)
def test_byte_sizes(text: Any, count: int) -> None:
    assert parse_bytes(text) == count


def test_recipe_and_arguments(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", tiny_config())
    recipe = write(tmp_path / "r.yaml", GOOD)
    with pytest.raises(UsageError, match=r"names a/b@c, but no folder.*--checkpoint"):
        make_request(recipe, None, [], [], None)
    with pytest.raises(UsageError, match="'mthreads' is not in this recipe; it has ascend"):
        make_request(recipe, tmp_path / "checkpoint", [], ["mthreads"], None)
    with pytest.raises(UsageError, match="belongs to a recipe"):
        make_request(tmp_path / "checkpoint", tmp_path / "checkpoint", ["bf16:hf"], [], None)
    with pytest.raises(UsageError, match="say what to make of it"):
        make_request(tmp_path / "checkpoint", None, [], [], None)
    relative = write(tmp_path / "s.yaml", GOOD | {"source": GOOD["source"] | {"path": "checkpoint"}})
    request = make_request(relative, None, ["fp8:hf"], ["huawei"], "split")
    assert [str(target) for target in request.targets] == ["bf16:mp8", "fp8:hf"]
    assert [one.chip.id for one in request.chips] == ["ascend"]
    assert request.provenance.recipe is not None
    assert "path" not in request.provenance.recipe["source"]


def test_the_recipe_travels_in_the_manifest() -> None:
    document = Recipe.model_validate(GOOD).model_dump(mode="json")
    assert document["convert"] == {
        "max_file_bytes": 5 * 10**9, "rank_part_bytes": None, "lossy_repack": "refuse", "allow_zero_tensors": [],
        "int8_scale": "best", "channel_scale": "power-of-two",
    }  # fmt: skip


def test_how_a_release_is_judged_changes_nothing_in_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", tiny_config())
    judged = GOOD | {"validation": {"stages": ["integrity"], "behaviour": {"margin": 0.25}}}
    recipes = [write(tmp_path / f"{n}.yaml", recipe) for n, recipe in enumerate((GOOD, judged))]
    assert read_recipe(recipes[0]).validation != read_recipe(recipes[1]).validation
    digests, recorded = set(), []
    for recipe in recipes:
        request = make_request(recipe, tmp_path / "checkpoint", [], [], None)
        plan = make_plan(request.source, request.targets, request.options, request.provenance)
        digests |= {release.digest for release in plan.releases}
        recorded.append(plan.provenance.recipe)
    assert len(digests) == 1
    assert recorded[0] == recorded[1]
    assert "validation" not in recorded[0]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (b"model: M\n? [a, b]\n: 1\n", 2, "a key is a list"),
        (b"model: M\nsource:\n  ? {a: b}\n  : 1\n", 3, "a key is a mapping"),
        (b"model: M\nsource: &here\n  repo: a/b\nagain: *here\n", 2, "anchors and aliases"),
        (b"model: M\nmodel: N\n", 2, "'model' appears twice"),
        (b"model: M\nsource:\n\trepo: a/b\n", 3, "cannot start any token"),
        (b"model: M\nsource: [\n", 3, "not a valid recipe"),
        (b"model: M\nlicense: \xff\n", 2, "not UTF-8"),
        (b"model: M\nsource: a\x07\n", 2, "is not allowed"),
        (b"model: M\n---\nmodel: N\n", 2, "another document"),
        (b"model: !!python/name:os.system\n", 1, "could not determine a constructor"),
    ],
)
def test_what_yaml_allows_and_a_recipe_does_not_is_refused_with_its_line(
    tmp_path: Path, text: bytes, line: int, said: str
) -> None:
    """A key that is a list was a TypeError with a traceback: no list can be in a set."""
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(UsageError, match=rf"r\.yaml: line {line}: .*{said}"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("text", [b"a: 2026-13-45\n", b"[" * 5000, b"- 1\n", b"", b"? \n: 1\n", b"1: 2\n"])
def test_other_yaml_is_refused_without_a_traceback(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(UsageError, match=r"r\.yaml: "):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("path", FULL_SIZE)
def test_a_chip_of_a_bare_checkpoint_gets_what_the_shipped_recipe_says(
    path: Path, checkpoint_for: Callable[[Path], Path]
) -> None:
    """`plan DeepSeek-V4-Flash/ --chip ascend` planned bf16:mp8, which fits no card beside a context."""
    recipe, checkpoint = read_recipe(path), checkpoint_for(path)
    bare = make_request(checkpoint, None, [], list(recipe.releases), None)
    asked = make_request(path, checkpoint, [], [], None)
    assert bare.chips == asked.chips
    assert all(f"as in the recipe shipped for {recipe.model}" in note for note in bare.notes)


def test_a_model_without_a_recipe_gets_the_fewest_cards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", tiny_config(), holes=True)
    request = make_request(tmp_path / "checkpoint", None, [], ["mthreads"], None)
    assert {str(target) for target in request.targets} == {"fp8:mp1"}
    assert "no shipped recipe" in request.notes[0]


def test_cards_choose_the_ranks(checkpoint_for: Callable[[Path], Path]) -> None:
    checkpoint = checkpoint_for(Path("deepseek-v4-flash.yaml"))

    def ask(*chips: str, cards: int) -> set[str]:
        request = make_request(checkpoint, None, [], chips, None, cards)
        return {str(target) for target in request.targets}

    assert ask("ascend", cards=32) == {"w8a8-ascend:hf", "bf16:mp32"}  # whole tensors are for any number of cards
    assert ask("ascend:bf16-mp16", cards=32) == {"bf16:mp32"}
    with pytest.raises(UsageError, match="ascend:w8a8-ascend-hf has no release that is cut for cards"):
        ask("ascend:w8a8-ascend-hf", cards=32)
    with pytest.raises(UsageError, match=r"--cards 8: each would hold 70\.\d GiB .* 16 cards are enough"):
        ask("ascend", cards=8)
    with pytest.raises(UsageError, match="not divisible by 12"):
        ask("ascend", cards=12)
    with pytest.raises(UsageError, match="--cards needs --chip"):
        make_request(checkpoint, None, ["bf16:hf"], [], None, 8)
    with pytest.raises(UsageError, match="--cards is for a checkpoint folder"):
        make_request(SHIPPED[0], checkpoint, [], [], None, 8)
