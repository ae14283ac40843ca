"""The table of efforts against DeepSeek's own encoder and request conversion, and how a revision is recognised."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import deepseek_recipe as recipe
import pytest
import yaml

from flagrelease.engine.efforts import read_efforts
from flagrelease.errors import UsageError
from flagrelease.model.v4.chat import BOS, encode_messages
from flagrelease.model.v4.config import ModelConfig, read_config
from flagrelease.model.v4.efforts import ENCODER, MODES, Efforts, efforts_of, recognise
from flagrelease.records.rules import ChatMode

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"
X = [{"role": "user", "content": "x"}]
# as encoding_dsv4.py of the preview: index 0, thinking, reasoning_effort "max" begins with this text, anything else not
ABSOLUTE = "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"


def rendered(body: dict[str, Any]) -> str:
    request = recipe.ChatCompletionRequest({"model": "DeepSeek-V4-Pro", "messages": X, **body})
    conversation = request.convert(recipe.ConversionOptions()).conversation
    return recipe.DeepseekV4Encoding().render_conversation(conversation).prompt


@pytest.mark.parametrize("mode", MODES)
def test_newest_efforts_are_those_of_deepseeks_requests(mode: str) -> None:
    # reasoning_effort high gave no preamble, max the text of high, and xhigh was refused
    body: dict[str, Any] = {"reasoning_effort": mode}
    if mode in ("chat", "thinking"):
        body = {"thinking": {"type": "enabled" if mode == "thinking" else "disabled"}}
    effort = efforts_of("0731").by_mode[mode]  # type: ignore[index]
    assert encode_messages(X, effort).text == rendered(body)


def test_no_two_efforts_of_a_revision_with_other_names_have_one_text() -> None:
    for revision in ("preview", "0731"):
        efforts = set(efforts_of(revision).by_mode.values())
        assert len({(effort.thinks, effort.preamble) for effort in efforts}) == len(efforts) == len(
            {effort.name for effort in efforts}
        )  # fmt: skip


def test_the_preview_has_a_text_for_max_alone() -> None:
    preview = efforts_of("preview")
    begun = {mode for mode in MODES if encode_messages(X, preview.of(mode)).text.startswith(BOS + ABSOLUTE)}
    assert begun == {"max", "xhigh"}
    assert preview.of("max").preamble == efforts_of("0731").of("high").preamble
    assert {preview.of(mode).preamble for mode in MODES if mode not in begun} == {""}


def test_rules_know_modes_of_the_table() -> None:
    assert set(get_args(ChatMode)) < set(MODES)


def test_unknown_modes_and_revisions_are_refused() -> None:
    with pytest.raises(UsageError, match="chat mode 'loud': known are chat, thinking, minimal"):
        efforts_of("0731").of("loud")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="revision '0815': known are preview, 0731"):
        efforts_of("0815")


OFFICIAL = 'REASONING_EFFORT_PROMPTS: Dict[str, str] = {\n    "low": "",\n}\nDEFAULT_REASONING_EFFORT = "low"\n'
PREVIEW = 'x = 1\nREASONING_EFFORT_MAX = (\n    "Reasoning Effort: Absolute maximum"\n)\n'
COMMENT = "# REASONING_EFFORT_PROMPTS = none\n" + PREVIEW


def config_of(*, dspark: bool, mtp: int = 1) -> ModelConfig:
    config, _ = read_config(CONFIGS / "flash.json")
    if not dspark:
        ratios = config.compress_ratios[:43] + (0,) * mtp
        return config.model_copy(update={"num_nextn_predict_layers": mtp, "compress_ratios": ratios})
    added = {"dspark_block_size": 5, "dspark_noise_token_id": 128799, "dspark_target_layer_ids": (40, 41, 42)}
    return config.model_copy(update={**added, "dspark_markov_rank": 256})


@pytest.mark.parametrize(
    ("encoder", "repository", "dspark", "revision", "said"),
    [
        (OFFICIAL, "deepseek-ai/DeepSeek-V4-Flash", False, "0731", ENCODER),  # also with its drafts dropped
        (PREVIEW, None, True, "preview", ENCODER),  # DeepSeek-V4-Flash-DSpark of June
        (COMMENT, None, True, "preview", ENCODER),
        (None, "deepseek-ai/DeepSeek-V4-Pro-0813", False, "0731", "its name"),
        (None, "deepseek-ai/DeepSeek-V4-Pro-DSpark", True, "preview", "its name"),
        ("nothing = 1", "someone/finetune", True, "0731", "DSpark"),
        (None, None, False, "preview", "MTP"),
    ],
)
def test_the_revision_is_recognised(
    tmp_path: Path, encoder: str | None, repository: str | None, dspark: bool, revision: str, said: str
) -> None:
    if encoder is not None:
        (tmp_path / "encoding").mkdir()
        (tmp_path / ENCODER).write_text(encoder, encoding="utf-8")
    found = recognise(tmp_path, config_of(dspark=dspark), [] if repository is None else [repository])
    assert (found.revision, said in found.known_by) == (revision, True)


def test_what_nothing_tells_counts_as_the_newest_and_says_so(tmp_path: Path) -> None:
    found = recognise(tmp_path, config_of(dspark=False, mtp=0), ["someone/finetune"])
    assert (found.revision, found.known_by) == ("0731", "nothing in it, so the newest is assumed")


def test_a_release_on_disk(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((CONFIGS / "flash.json").read_text(encoding="utf-8"), encoding="utf-8")
    found: Efforts = read_efforts(tmp_path)
    assert found.revision == "preview"
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["num_nextn_predict_layers"] == 1


OF_V4 = [path for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")) if "v4.1" not in path.stem]


@pytest.mark.parametrize("recipe_file", OF_V4, ids=str)
def test_the_models_of_recipes_are_recognised_by_name(recipe_file: Path, tmp_path: Path) -> None:
    # without their draft stages nothing else tells them apart, if the release carries no encoder
    name = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))["model"]
    found = recognise(tmp_path, config_of(dspark=False, mtp=0), [name])
    assert found.revision == ("0731" if re.search(r"-0\d{3}$", name) else "preview")
    assert found.known_by == f"its name, {name}"
