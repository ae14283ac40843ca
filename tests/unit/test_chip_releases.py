"""Several releases of a chip: what a recipe may say, how one is chosen, and that repositories do not clash."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.utils import validate_repo_id

from flagrelease.chips.stacks import load_stacks, stacks_of
from flagrelease.chips.table import get_chip, load_chips
from flagrelease.convert.request import make_request
from flagrelease.errors import UsageError
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.chip_releases import ReleaseSpec, repository
from flagrelease.records.recipe import Recipe, parse_recipe, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TWO = [
    {"format": "fp8", "layout": "hf", "stack": "vllm-musa"},
    {"format": "fp8", "layout": "mp8", "stack": "flagos"},
]


def recipe_of(releases: dict[str, Any], model: str = "M") -> Recipe:
    document = {
        "schema_version": 1,
        "model": model,
        "source": {"repo": "a/b", "revision": "c", "license": "MIT"},
        "releases": releases,
    }
    return parse_recipe(yaml.safe_dump(document, sort_keys=False), "r.yaml")


def test_one_release_or_a_list_and_the_old_key() -> None:
    old = recipe_of({"mthreads": {"dtype": "fp8", "layout": "mp8"}})
    new = recipe_of({"mthreads": [{"format": "fp8", "layout": "mp8"}]})
    assert old == new
    assert recipe_of({"mthreads": {"format": "fp8", "layout": "mp8"}}) == new
    # The manifest holds the new form, and it is read again as the same recipe.
    assert Recipe.model_validate(old.document()).document() == new.document()
    two = recipe_of({"mthreads": TWO})
    assert [spec.stack for spec in two.releases["mthreads"]] == ["vllm-musa", "flagos"]


@pytest.mark.parametrize(
    ("releases", "said"),
    [
        ({"ascend": {"format": "bf16", "dtype": "bf16", "layout": "hf"}}, "two words for one thing"),
        ({"ascend": []}, "releases.ascend: .*at least 1"),
        ({"ascend": [{"format": "bf16", "layout": "mp8"}, {"dtype": "bf16", "layout": "mp8"}]}, "bf16-mp8 twice"),
        (
            {"ascend": [{"format": "bf16", "layout": "mp16", "o_groups": cut} for cut in ("shared", "split")]},
            "bf16-mp16 twice",
        ),
        ({"hygon": {"format": "int8", "layout": "mp8"}}, "int8 exists in the hf layout only"),
        ({"mthreads": {"format": "fp8", "layout": "hf", "stack": "vllm"}}, "not serve mthreads.*vllm-musa, flagos"),
        ({"mthreads": {"format": "fp8", "layout": "hf", "stack": "vlm"}}, "'vlm' does not serve mthreads"),
        ({"nvidia": {"format": "fp8", "layout": "mp8", "stack": "vllm"}}, "reads layout hf, not mp8"),
        ({"nvidia": {"format": "fp8", "layout": "hf", "stack": "flagos"}}, "reads layout mp, not hf"),
        (
            {"nvidia": {"format": "fp8-e8m0", "layout": "hf", "stack": "vllm"}},
            "answers nonsense with fp8-e8m0: E8M0 scales of FP8 experts are copied as bytes.*it accepts .*fp8",
        ),
        ({"metax": {"format": "fp8-channel", "layout": "hf", "stack": "vllm-metax"}}, "fp8-channel: .*FusedMoe"),
    ],
)  # fmt: skip
def test_what_releases_of_a_chip_may_not_be(releases: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_of(releases)


def test_a_stack_of_which_nobody_knows_is_allowed() -> None:
    assert load_stacks()["iluvatar"].by_form["bf16"].verdict == "unknown"
    recipe_of({"iluvatar": {"format": "bf16", "layout": "hf", "stack": "iluvatar"}})


def test_a_chip_or_one_of_its_releases_is_chosen() -> None:
    recipe = recipe_of({"mthreads": TWO, "ascend": {"format": "bf16", "layout": "mp16"}})

    def names(*choices: str) -> list[str]:
        return [f"{one.chip.id} {one.spec.name}" for one in recipe.chosen(choices)]

    assert names() == ["mthreads fp8-hf", "mthreads fp8-mp8", "ascend bf16-mp16"]
    assert names("moore") == ["mthreads fp8-hf", "mthreads fp8-mp8"]
    assert names("mthreads:fp8-mp8") == ["mthreads fp8-mp8"]
    assert names("mthreads:fp8-mp8", "mthreads") == ["mthreads fp8-mp8", "mthreads fp8-hf"]
    with pytest.raises(UsageError, match=r"this recipe has mthreads:fp8-hf, mthreads:fp8-mp8"):
        names("mthreads:bf16-hf")
    with pytest.raises(UsageError, match="'nvidia' is not in this recipe"):
        names("nvidia:fp8-hf")


def test_chips_that_want_the_same_share_one_conversion(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", tiny_config())
    path = tmp_path / "r.yaml"
    nvidia = [{"format": "fp8", "layout": "hf", "stack": "vllm"}, {"format": "fp8", "layout": "mp8"}]
    path.write_text(yaml.safe_dump(recipe_of({"mthreads": TWO, "nvidia": nvidia}).document(), sort_keys=False))
    request = make_request(path, tmp_path / "checkpoint", [], [], None)
    assert [str(target) for target in request.targets] == ["fp8:hf", "fp8:mp8"]
    assert [(one.chip.id, str(one.target), one.stack) for one in request.chips] == [
        ("mthreads", "fp8:hf", "vllm-musa"), ("mthreads", "fp8:mp8", "flagos"),
        ("nvidia", "fp8:hf", "vllm"), ("nvidia", "fp8:mp8", None),
    ]  # fmt: skip
    one = make_request(path, tmp_path / "checkpoint", [], ["mthreads:fp8-mp8"], None)
    assert [str(target) for target in one.targets] == ["fp8:mp8"]


def test_repository_names() -> None:
    """The first two are names of published repositories, from the fact sheet (section 2.6)."""
    flagos = ReleaseSpec(format="fp8", layout="mp8")
    for chip in ("mthreads", "nvidia"):
        name = repository("DeepSeek-V4-Flash", get_chip(chip), flagos, (flagos,))
        assert name == f"FlagRelease/DeepSeek-V4-Flash-{chip}-FlagOS"
    musa, bf16 = ReleaseSpec(**TWO[0]), ReleaseSpec(format="bf16", layout="mp16", stack="flagos")
    every = (musa, flagos, bf16)
    assert [repository("M", get_chip("mthreads"), spec, every) for spec in every] == [
        "FlagRelease/M-FP8-mthreads-vllm-musa",
        "FlagRelease/M-mthreads-FlagOS",
        "FlagRelease/M-BF16-mp16-mthreads-FlagOS",
    ]
    int8 = ReleaseSpec(format="int8", layout="hf", stack="hygon-bw1000")
    assert repository("M", get_chip("hygon"), int8, (int8,)) == "FlagRelease/M-INT8-hygon-bw1000"


def test_no_two_repositories_of_the_shipped_recipes_clash_and_hubs_take_the_names() -> None:
    repos = Counter(one.repo for path in RECIPES for one in read_recipe(path).chosen())
    assert max(repos.values()) == 1
    for repo in repos:
        validate_repo_id(repo)  # Hugging Face's own rule


def test_no_two_releases_that_a_chip_could_have_clash() -> None:
    """Every format of every stack of a chip at once, with FlagOS' in every layout."""
    for chip in load_chips().values():
        specs = [
            ReleaseSpec(format=one.name, layout="hf", stack=stack.id)
            for stack in stacks_of(chip.id)
            if "hf" in stack.layouts
            for one in RELEASE_FORMATS.values()
        ]
        specs += [
            ReleaseSpec(format=name, layout=layout) for name in ("fp8", "bf16") for layout in ("mp8", "mp16", "hf")
        ]
        names = [repository("DeepSeek-V4-Pro-0813", chip, spec, tuple(specs)) for spec in specs]
        assert len(set(names)) == len(names)
        for name in names:
            validate_repo_id(name)


def test_a_model_whose_repositories_hubs_refuse_is_refused() -> None:
    releases = {"nvidia": {"format": "fp8", "layout": "mp8"}}
    recipe_of(releases, "M" * 82)
    for model in ("M" * 83, "M--1", "M..1"):
        with pytest.raises(UsageError, match="its repository for nvidia would be"):
            recipe_of(releases, model)
