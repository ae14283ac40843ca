"""What cards say of serving stacks and of exactness: by the replay of loaders, and by the manifest's losses."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from stack_records import HEADERS, records_of_format

from flagrelease.chips.stacks import stacks_of
from flagrelease.chips.table import load_chips
from flagrelease.errors import VerificationError
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.publish.card import make_card
from flagrelease.publish.claims import Claims
from flagrelease.publish.front_matter import check_card
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.registry import HUBS
from flagrelease.publish.losses import by_kind, losses, lossless
from flagrelease.publish.serving import judge_stacks
from flagrelease.records.manifest import Dtype, ElementCounts, LossRecord

SCALED = LossRecord(
    rows=4, exact_rows=1, elements=40, exact_elements=30, largest_error=0.0039, rms_error=0.0081
)  # fmt: skip
KEPT = SCALED.model_copy(update={"exact_rows": 4, "exact_elements": 40, "largest_error": 0.0, "rms_error": 0.0})


def card_of(tmp_path: Path, chip: str, name: Dtype, stack: str | None = None) -> str:
    return make_card(records_of_format(tmp_path / "r", chip, name, stack), HUGGING_FACE, "a/b").decode()


def commands(card: str) -> list[str]:
    return [block for block in re.findall(r"```bash\n(.*?)```", card, re.DOTALL) if "--served-model-name" in block]


def test_the_stack_that_a_release_is_made_for_with_its_flags(tmp_path: Path) -> None:
    card = card_of(tmp_path, "mthreads", "fp8", "vllm-musa")
    (command,) = commands(card)
    assert command == (
        "VLLM_PLUGINS=musa,musa_custom_ops VLLM_WORKER_MULTIPROC_METHOD=spawn vllm serve . "
        "--served-model-name DeepSeek-V4-Flash \\\n  --tensor-parallel-size=8 \\\n  --kv-cache-dtype=fp8 \\\n"
        "  --tokenizer-mode=deepseek_v4 \\\n  --trust-remote-code\n"
    )
    assert "This release is made for it." in card
    assert card.index("## Serving stacks") < card.index("## Run")
    assert "- vllm-musa" in card.split("---")[1]  # a tag


def test_a_stack_that_answers_nonsense_is_named_and_warned_of(tmp_path: Path) -> None:
    """The card of our fp8:hf printed `vllm serve`, and vLLM reads its E8M0 scales as bytes."""
    card = card_of(tmp_path, "nvidia", "fp8-e8m0")
    assert "**Do not load this release with vLLM (0.33.0)**" in card
    assert "2^-7 arrives as 120.0" in card
    assert [re.findall(r"vllm serve|sglang\.launch_server", command) for command in commands(card)] == [
        ["sglang.launch_server"]
    ]
    assert commands(card_of(tmp_path, "mthreads", "fp8-e8m0")) == []


def test_flags_that_only_this_format_needs(tmp_path: Path) -> None:
    card = card_of(tmp_path, "nvidia", "int8", "vllm")
    sglang = next(command for command in commands(card) if "sglang" in command)
    assert sglang.startswith("SGLANG_OPT_FUSE_WQA_WKV=0 python -m sglang.launch_server --model-path .")
    assert "--tp=1" in sglang
    assert any(command.startswith("vllm serve .") for command in commands(card))
    ascend = commands(card_of(tmp_path / "b", "ascend", "w8a8-ascend", "vllm-ascend"))
    assert any("vllm serve" in command and command.count("--quantization=ascend") == 1 for command in ascend)


def test_a_stack_whose_loader_nobody_could_read_gets_no_command(tmp_path: Path) -> None:
    card = card_of(tmp_path, "kunlunxin", "int8-experts", "vllm-kunlun")
    assert "made for vLLM-Kunlun (pull requests 402 and 439), which loads it, by its makers' word." in card
    assert "so nothing here vouches for it" in card
    assert commands(card) == []
    unknown = card_of(tmp_path / "b", "iluvatar", "bf16", "iluvatar")
    assert "which may load it" in unknown
    assert commands(unknown) == []


def test_each_product_of_hygon_has_its_own_card(tmp_path: Path) -> None:
    old = records_of_format(tmp_path / "a", "hygon", "int8", "hygon-bw1000", size=300 * 10**9)
    new = records_of_format(tmp_path / "b", "hygon", "fp8-channel", "hygon-bw1100", size=300 * 10**9)
    assert (old.product.name, new.product.name) == ("DCU BW1000", "DCU BW1100")
    assert (old.cards, new.cards) == (8, 4)
    assert "# DeepSeek-V4-Flash for Hygon DCU BW1100" in make_card(new, HUGGING_FACE, "a/b").decode()


@pytest.mark.parametrize("chip", load_chips())
def test_every_card_of_every_format_names_only_stacks_whose_replay_passes(chip: str, tmp_path: Path) -> None:
    for name, form in RELEASE_FORMATS.items():
        stacks = [None, *(stack.id for stack in stacks_of(chip) if stack.by_form[form.name].verdict == "loads")]
        for stack in stacks:
            records = records_of_format(tmp_path / name, chip, form.name, stack if stack != "flagos" else None)
            judged = judge_stacks(records)
            assert all(one.judgement.replay is not None for one in judged if one.loads)
            for hub in HUBS:
                card = make_card(records, hub, "a/b").decode()
                check_card(card, hub)
                assert not re.search(r"None|null|\{\{|TODO|\bnan\b|\| *\|", card)
                assert len(commands(card)) == sum(one.loads and one.stack.launch is not None for one in judged)
                assert card.count("**Do not load") == sum(one.answers_nonsense for one in judged)
                if form.description.name != "DEEPSEEK":
                    assert "inference/config.json" not in card
                for block in re.findall(r"```bash\n(.*?)```", card, re.DOTALL):
                    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_a_release_whose_config_is_gone_is_refused(tmp_path: Path) -> None:
    records = records_of_format(tmp_path / "r", "nvidia", "fp8")
    (tmp_path / "r" / "config.json").write_text("[]")
    with pytest.raises(VerificationError, match=r"config\.json: a JSON object is expected"):
        make_card(records, HUGGING_FACE, "a/b")
    (tmp_path / "r" / "config.json").unlink()
    with pytest.raises(VerificationError, match=r"config\.json: cannot be read"):
        make_card(records, HUGGING_FACE, "a/b")


def test_lossless_is_said_only_if_nothing_was_rounded_or_lost(tmp_path: Path) -> None:
    def says(**changes: object) -> str:
        records = records_of_format(tmp_path / "r", "nvidia", "int8", **changes)
        manifest = records.manifest
        said = "\n".join(Claims(records).render(losses(manifest, "inferred")))
        assert ("**Lossless**" in said) == lossless(manifest) == ("**Not lossless**" not in said)
        return said

    assert "**Lossless**" in says(elements=ElementCounts(copied=5, exact=6, repacked=7))
    one_of_many = ElementCounts(repacked=10**9, lost=1)
    assert "1 of 1,000,000,001 elements" in says(elements=one_of_many)
    assert "**Not lossless**" in says(elements=ElementCounts(exact=5, rounded=1))
    assert "**Not lossless**" in says(losses={"layers.0.attn.wq_b.weight": SCALED})


def test_losses_are_a_table_of_kinds(tmp_path: Path) -> None:
    """V4-Pro has 70,000 experts: a line for each would make a card of megabytes."""
    each = {f"layers.{layer}.ffn.experts.{e}.w1.weight": SCALED for layer in range(2) for e in range(3)}
    each |= {"layers.0.attn.wq_b.weight": SCALED.model_copy(update={"rms_error": 0.5}), "head.weight": KEPT}
    records = records_of_format(
        tmp_path / "r", "nvidia", "int8", losses=each, elements=ElementCounts(repacked=50, lost=70)
    )
    lines = make_card(records, HUGGING_FACE, "a/b").decode().splitlines()
    experts = (
        "| 6 x `layers.*.ffn.experts.*.w1.weight` | 6 of 24 (25.00%) | 180 of 240 (75.00%) | 3.90e-03 | 8.10e-03 "
        "| proved |"
    )
    assert experts in lines
    assert (
        "| 1 x `layers.*.attn.wq_b.weight` | 1 of 4 (25.00%) | 30 of 40 (75.00%) | 3.90e-03 | 5.00e-01 | proved |"
        in lines
    )
    assert list(by_kind(each)) == ["head.weight", "layers.*.attn.wq_b.weight", "layers.*.ffn.experts.*.w1.weight"]
    nearly = SCALED.model_copy(update={"rows": 10**6, "exact_rows": 10**6 - 1})
    nearly_all = replace(records, manifest=records.manifest.model_copy(update={"losses": {"w": nearly}}))
    said = "\n".join(Claims(nearly_all).render(losses(nearly_all.manifest, "inferred")))
    assert "999,999 of 1,000,000 (99.99%)" in said  # not 100 %


def test_the_headers_cover_every_format() -> None:
    assert RELEASE_FORMATS.keys() <= HEADERS.keys()
