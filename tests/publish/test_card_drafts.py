"""The card says which draft stages a release holds, by its manifest's tensors, and which stacks draft with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stack_records import records_of_format
from test_card import records_of

from flagrelease.errors import VerificationError
from flagrelease.publish.card import make_card
from flagrelease.publish.claims import Claims
from flagrelease.publish.drafts import HeldDrafts, drafting, drafts_row, held_drafts
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.records import Records
from flagrelease.publish.serving import judge_stacks

DSPARK = ("mtp.0.main_proj.weight", "mtp.0.main_proj.scale", "mtp.1.attn_norm.weight", "mtp.2.norm.weight")


def with_tensors(records: Records, *names: str) -> Records:
    """The records of a release that holds these draft tensors and no others."""
    kept = {name: one for name, one in records.manifest.tensors.items() if not name.startswith("mtp.")}
    one = next(iter(kept.values()))
    tensors = {**kept, **dict.fromkeys(names, one)}
    return replace(records, manifest=records.manifest.model_copy(update={"tensors": tensors}))


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Of the preview in native form, for stacks that read it."""
    return records_of_format(tmp_path_factory.mktemp("r") / "r", "nvidia", "native", "vllm")


def test_the_previews_stage(flash: Records) -> None:
    assert held_drafts(flash) == HeldDrafts("mtp", 1, 1)
    card = make_card(flash, HUGGING_FACE, "a/b").decode()
    assert "| draft stages | MTP of the preview: 1 stage, which drafts one token | proved |\n" in card
    said = card[card.index("## Drafts") : card.index("## Limits")]
    assert "- flagrelease: `serve` drafts while that pays" in said
    assert (
        '- vLLM (0.33.0): `--speculative-config \'{"method":"mtp","num_speculative_tokens":1}\'` (read in its' in said
    )
    assert "- SGLang (0.5.23): not known *(inferred)*\n" in said


def test_dsparks_stages_and_the_size_of_their_blocks(flash: Records, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v4", "dspark_block_size": 7}))
    held = replace(with_tensors(flash, *DSPARK), release=tmp_path)
    assert held_drafts(held) == HeldDrafts("dspark", 3, 7)
    assert drafts_row(held, "proved").cells == ("draft stages", "DSpark: 3 stages, which draft blocks of 7 tokens")
    said = "\n".join(Claims(held).render(drafting(held, judge_stacks(flash))))
    assert "- SGLang (0.5.23): `--speculative-algorithm DSPARK` (by its makers' word)" in said
    assert '"method":"dspark","num_speculative_tokens":7' in said
    for content in ('{"model_type": "deepseek_v4"}', '{"dspark_block_size": "5"}', "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(VerificationError, match=r"config\.json"):
            held_drafts(held)


def test_stages_that_were_dropped() -> None:
    records = records_of("deepseek-v4-pro-0813", "ascend")
    assert records.target.drafts == "drop"
    assert held_drafts(records) is None
    card = make_card(records, HUGGING_FACE, "a/b").decode()
    assert "| draft stages | left out: answers are the same, without speculation | proved |\n" in card
    assert "## Drafts" not in card
    kept = make_card(records_of("deepseek-v4-flash-0731", "mthreads"), HUGGING_FACE, "a/b").decode()
    assert "| draft stages | DSpark: 3 stages, which draft blocks of 5 tokens | proved |\n" in kept


def test_a_source_without_stages(flash: Records) -> None:
    bare = with_tensors(flash)
    assert drafts_row(bare, "proved").cells == ("draft stages", "none: the source has none")
    assert list(drafting(bare, ())) == []


def test_stages_that_the_engine_does_not_run(flash: Records) -> None:
    two = with_tensors(flash, "mtp.0.e_proj.weight", "mtp.1.e_proj.weight")
    assert "2 stages" in drafts_row(two, "proved").cells[1]
    assert "- flagrelease: not used" in "\n".join(Claims(two).render(drafting(two, ())))
