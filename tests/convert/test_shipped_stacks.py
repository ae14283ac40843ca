"""Every shipped recipe on the small model: what it makes is converted, and its own stacks load it by the replay."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness import plan_of, run_plan

from flagrelease.chips.loading.folder import release_in
from flagrelease.chips.loading.verdict import judge
from flagrelease.chips.table import load_chips
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.request import make_request
from flagrelease.convert.summary import summarise
from flagrelease.errors import UsageError
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint
from flagrelease.records.recipe import read_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
OF_V4 = [path for path in SHIPPED if "v4.1" not in path.stem]
CUTS_TO = 16  # experts of the small model: no layout of more ranks can be made of it


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    write_checkpoint(folder, tiny_config(topk_method="noaux_tc"))
    return folder


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_release_of_a_shipped_recipe_is_what_its_stack_loads(
    path: Path, small: Path, v41_release: Path, tmp_path: Path
) -> None:
    small = small if path in OF_V4 else v41_release
    recipe = tmp_path / path.name
    text = re.sub(r"layout: mp(\d+)", lambda found: f"layout: mp{min(int(found[1]), CUTS_TO)}", path.read_text())
    recipe.write_text(re.sub(r"(?m)^model: .*$", "model: small", text))
    request = make_request(recipe, small, [], [], None)
    plan = make_plan(request.source, request.targets, request.options, request.provenance)
    summary = summarise(plan, request, 1, tmp_path)
    summary.require_takers()
    assert summary.notes == []  # of no stack it is unknown whether it loads the release made for it
    manifests = run_plan(plan, tmp_path / "out")
    assert len(manifests) == len(set(request.targets))
    assert len(manifests) < len(request.chips) or path not in OF_V4  # chips share
    for one in read_recipe(recipe).chosen():
        if one.spec.layout == "hf":
            assert one.stack is not None
            judged = judge(one.stack, release_in(tmp_path / "out" / one.spec.name))
            assert judged.verdict in ("loads", "loads with flags"), (one.repo, judged.why)
            assert judged.form == one.spec.format


def test_a_recipe_is_for_the_dimensions_of_its_model(small: Path) -> None:
    """A Flash recipe over another checkpoint named Flash's repository and revision as the source of its releases."""
    path = next(path for path in SHIPPED if path.stem == "deepseek-v4-flash")
    with pytest.raises(UsageError, match=f"recipe is for DeepSeek-V4-Flash; the checkpoint {small} has the dimensions"):
        make_request(path, small, [], [], None)


def test_each_chip_gets_what_its_own_stack_loads_and_keeps_flagos_engine() -> None:
    """But for Iluvatar, whose stack nobody could read."""
    recipe = read_recipe(next(path for path in SHIPPED if path.stem == "deepseek-v4-flash"))
    assert recipe.releases.keys() == load_chips().keys()
    for chip, specs in recipe.releases.items():
        assert [spec.stack for spec in specs if spec.layout != "hf"] == ["flagos"]
        assert any(spec.layout == "hf" for spec in specs) == (chip != "iluvatar")
    assert [(spec.format, spec.stack) for spec in recipe.releases["hygon"]][:2] == [
        ("int8", "hygon-bw1000"), ("fp8-channel", "hygon-bw1100"),
    ]  # fmt: skip


def test_the_limit_of_the_shipped_recipes_refuses_what_blocks_lose(small: Path, tmp_path: Path) -> None:
    """`allow` would let FP4 elements pass that FP8 blocks lose; the limit is of rows, and blocks have none."""
    for path in OF_V4:
        limit = read_recipe(path).convert.lossy_repack
        assert not isinstance(limit, str)
        assert limit.largest_share_of_inexact_rows == 1
    run_plan(plan_of(small, "int8:hf", lossy_repack={"largest_share_of_inexact_rows": 1}), tmp_path)
    manifest = json.loads((tmp_path / "int8-hf" / "manifest.json").read_bytes())
    assert manifest["losses"]


def test_formats_without_inference_config_carry_none(small: Path) -> None:
    for name, form in RELEASE_FORMATS.items():
        (release,) = plan_of(small, f"{name}:hf").releases
        written = release.documents.written.keys() | release.documents.copied.keys()
        assert ("inference/config.json" in written) == (form.description.name == "DEEPSEEK"), name
