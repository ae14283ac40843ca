"""Which stack loads which release: the fact sheet's table, told by the claims and the replayed loaders together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from release_headers import releases

from flagrelease.chips.loading.rules import load_loaders, parse_loaders
from flagrelease.chips.loading.verdict import Judgement, judge
from flagrelease.chips.stacks import FORMS, OUR_FORMS, get_stack, load_stacks, parse_stacks, stacks_of
from flagrelease.chips.table import load_chips
from flagrelease.errors import UsageError

RELEASES = releases()


@cache
def judged_as(stack: str, form: str) -> Judgement:
    return judge(get_stack(stack), RELEASES[form])


COLUMNS = (
    "vllm", "sglang", "vllm-ascend", "vllm-ascend-950", "hygon-bw1000", "hygon-bw1100", "vllm-metax", "vllm-musa",
    "vllm-plugin-fl", "vllm-kunlun",
)  # fmt: skip
OK, FLAGS, WRONG, NO, OPEN = "loads", "loads with flags", "silently wrong", "refused", "unknown"

# Section 8 of shared/facts/serving-stacks.md, written by hand from it. Its column Hygon is two products here, and what
# its column SGLang says of ModelSlim is the NPU's, in a test below. "ok with ..." is FLAGS where the launch has to say
# it, and OK where the release does (ignored_layers).
TABLE = {
    "native":              (OK,    OK,    NO,    OK,   OPEN,  OPEN,  OPEN,  NO,    OK,    OPEN),
    "fp8-e8m0":            (WRONG, OK,    NO,    NO,   WRONG, WRONG, WRONG, WRONG, WRONG, OPEN),
    "fp8":                 (OK,    OK,    NO,    NO,   OPEN,  OPEN,  OPEN,  OK,    OK,    OK),
    "fp8-no-expert-dtype": (NO,    OK,    NO,    NO,   NO,    NO,    NO,    FLAGS, NO,    OPEN),
    "fp8-bf16-wo-a":       (OK,    FLAGS, NO,    NO,   OPEN,  OPEN,  OPEN,  OPEN,  OK,    OK),
    "bf16":                (OPEN,  OPEN,  NO,    OPEN, OPEN,  OPEN,  OK,    NO,    OK,    OPEN),
    "fp8-bf16-experts":    (NO,    OPEN,  NO,    OPEN, OPEN,  OPEN,  OPEN,  NO,    OK,    OPEN),
    "int8":                (OK,    FLAGS, OPEN,  OPEN, OK,    OK,    OK,    OPEN,  OK,    OK),
    "int8-wo-a":           (NO,    NO,    OPEN,  OPEN, NO,    NO,    NO,    OPEN,  OK,    OPEN),
    "fp8-channel":         (OK,    FLAGS, NO,    OPEN, OPEN,  OK,    NO,    OPEN,  OPEN,  OPEN),
    "w8a8-ascend":         (NO,    NO,    FLAGS, OPEN, NO,    NO,    NO,    NO,    NO,    NO),
    "w4a8-ascend":         (NO,    NO,    FLAGS, OPEN, NO,    NO,    NO,    NO,    NO,    NO),
    "mxfp8":               (NO,    NO,    NO,    FLAGS, NO,   NO,    NO,    NO,    NO,    NO),
    "nvfp4":               (OK,    OK,    NO,    NO,   NO,    NO,    NO,    NO,    NO,    NO),
    "transformers":        (NO,    OPEN,  OPEN,  OPEN, NO,    NO,    NO,    NO,    NO,    OPEN),
}  # fmt: skip

# Where we say something else than the fact sheet, and why.
DIFFERENT = {
    ("fp8-bf16-experts", "vllm-ascend-950"): (
        NO,
        "its table of expert dtypes, section 5, has fp4 and an error for fp8",
    ),
    ("fp8-bf16-experts", "hygon-bw1000"): (NO, "vLLM's rules, which the plugin leaves alone, refuse expert_dtype bf16"),
    ("fp8-bf16-experts", "hygon-bw1100"): (NO, "vLLM's rules, which the plugin leaves alone, refuse expert_dtype bf16"),
    ("fp8-bf16-experts", "vllm-metax"): (NO, "vLLM's rules, which the plugin leaves alone, refuse expert_dtype bf16"),
    ("int8-wo-a", "vllm-musa"): (NO, "its patch leaves vLLM's wo_a alone, which has no INT8 form"),
    ("transformers", "vllm-ascend"): (NO, "section 5: names are native, and an unknown one is a KeyError"),
    ("transformers", "vllm-ascend-950"): (NO, "section 5: names are native, and an unknown one is a KeyError"),
}


@pytest.mark.parametrize("form", TABLE)
def test_the_verdicts_are_those_of_the_fact_sheet(form: str) -> None:
    found = {name: judged_as(name, form).verdict for name in COLUMNS}
    expected = dict(zip(COLUMNS, TABLE[form], strict=True))
    different = {name: DIFFERENT[form, name][0] for name in COLUMNS if (form, name) in DIFFERENT}
    assert found == expected | different
    assert all(expected[name] != verdict for name, verdict in different.items()), "a difference that is none"


@pytest.mark.parametrize("form", ["w8a8-ascend", "w4a8-ascend", "mxfp8"])
def test_sglang_reads_modelslim_on_npus_with_two_switches(form: str) -> None:
    judged = judged_as("sglang-npu", form)
    assert judged.verdict == FLAGS
    assert set(judged.environment) == {"SGLANG_OPT_FUSE_WQA_WKV=0", "SGLANG_OPT_FP8_WO_A_GEMM=0"}


def test_experts_alone_in_int8_load_wherever_all_of_it_in_int8_does() -> None:
    for name in COLUMNS:
        whole, experts = (judged_as(name, form).verdict for form in ("int8", "int8-experts"))
        assert {whole, experts} <= {OK, FLAGS} or whole == experts, name


def test_the_flags_are_those_of_the_fact_sheet() -> None:
    judged = {(form, name): judged_as(name, form) for form in RELEASES for name in COLUMNS}
    needed = {key: (j.flags, j.environment) for key, j in judged.items() if j.verdict == FLAGS}
    override = ('--hf-overrides=\'{"expert_dtype":"fp8"}\'',)
    assert needed == {
        ("fp8-no-expert-dtype", "vllm-musa"): (override, ()),
        ("fp8-bf16-wo-a", "sglang"): ((), ("SGLANG_OPT_FP8_WO_A_GEMM=0",)),
        ("int8", "sglang"): ((), ("SGLANG_OPT_FUSE_WQA_WKV=0",)),
        ("int8-experts", "sglang"): ((), ("SGLANG_OPT_FUSE_WQA_WKV=0",)),
        ("fp8-channel", "sglang"): ((), ("SGLANG_OPT_FUSE_WQA_WKV=0",)),
        ("w8a8-ascend", "vllm-ascend"): (("--quantization=ascend",), ()),
        ("w4a8-ascend", "vllm-ascend"): (("--quantization=ascend",), ()),
        ("mxfp8", "vllm-ascend-950"): (("--quantization=ascend",), ()),
    }


def test_of_another_family_only_what_is_claimed_of_it_is_known() -> None:
    known = {
        (name, form): stack.claim(form, "deepseek_v41").verdict
        for name, stack in load_stacks().items()
        for form in OUR_FORMS
    }
    assert {key: verdict for key, verdict in known.items() if verdict != OPEN} == {
        ("vllm", "native"): OK, ("vllm", "fp8-e8m0"): "wrong", ("sglang", "native"): OK,
        ("vllm-ascend", "native"): NO, ("vllm-ascend", "fp8"): NO, ("vllm-ascend", "fp8-e8m0"): NO,
    }  # fmt: skip
    vllm = load_stacks()["vllm"].launch_of("deepseek_v41")
    assert vllm is not None
    assert vllm.flags == ("--tokenizer-mode=deepseek_v41",)
    assert load_stacks()["vllm-musa"].launch_of("deepseek_v41") is None


def test_each_release_is_told_by_its_headers() -> None:
    assert {form: release.form for form, release in RELEASES.items()} == {form: form for form in RELEASES}
    assert set(RELEASES) == set(FORMS)
    assert set(TABLE) == set(FORMS) - {"int8-experts"}


def test_what_loads_is_filled_to_the_last_parameter() -> None:
    judged = [judged_as(stack, form) for stack in load_stacks() for form in RELEASES]
    loading = [j for j in judged if j.verdict in (OK, FLAGS) and j.replay and j.form != "nvfp4"]
    assert len(loading) > 30
    assert all(j.replay and j.replay.filled == j.replay.parameters > 0 for j in loading)


def test_every_judgement_that_it_does_not_load_has_a_reason() -> None:
    for stack in load_stacks():
        for form in RELEASES:
            judged = judged_as(stack, form)
            assert judged.verdict in (OK, FLAGS) or judged.why, (stack, form)


def test_layouts_that_a_stack_does_not_read_are_refused() -> None:
    assert judge(get_stack("flagos"), RELEASES["bf16"], "hf").verdict == NO
    assert judge(get_stack("flagos"), RELEASES["bf16"], "mp").verdict == OK
    assert judge(get_stack("vllm"), RELEASES["fp8"], "mp").verdict == NO


def test_every_chip_has_a_stack_of_its_own_and_hygon_two() -> None:
    serving = {chip: [stack.id for stack in stacks_of(chip) if stack.id != "flagos"] for chip in load_chips()}
    assert all(serving.values())
    assert serving["hygon"] == ["hygon-bw1000", "hygon-bw1100"]
    assert {get_stack(name).product for name in serving["hygon"]} == {"BW1000", "BW1100"}
    assert all("flagos" in [stack.id for stack in stacks_of(chip)] for chip in load_chips())
    with pytest.raises(UsageError, match=r"'vlm' is not in the table \(vllm, sglang"):
        get_stack("vlm")


def test_a_stack_without_a_readable_loader_says_why_and_claims_nothing_verified() -> None:
    for name in ("vllm-kunlun", "iluvatar"):
        stack = get_stack(name)
        assert (stack.why_no_loader or "").startswith("unknown: ")
        assert not [claim for claim in stack.claims if claim.mark == "verified"]


def _edited(file: str, edit: Callable[[Any], None]) -> str:
    table = yaml.safe_load(resources.files("flagrelease.chips").joinpath(file).read_text(encoding="utf-8"))
    edit(table)
    return str(yaml.safe_dump(table, sort_keys=False))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t["stacks"]["vllm"]["claims"][0]["forms"].append("bf16"), "have none or several: bf16"),
        (lambda t: t["stacks"]["vllm"]["claims"].pop(), "have none or several: transformers"),
        (lambda t: t["stacks"]["iluvatar"]["claims"][0].pop("why"), "unknown without a reason"),
        (lambda t: t["stacks"]["iluvatar"].pop("why_no_loader"), "a reason why it has none"),
        (lambda t: t["stacks"]["vllm"]["chips"].append("tpu"), "not in the chip table: tpu"),
        (lambda t: t["stacks"]["vllm"]["claims"][0].pop("sources"), "sources"),
        (lambda t: t["stacks"]["vllm"]["claims"][0].update(mark="sure"), "mark"),
        (lambda t: t["stacks"]["vllm"].update(hopes=[]), "hopes"),
        (lambda t: t["sources"].pop("facts-7"), "cited but not listed"),
        (lambda t: t["sources"].update(hearsay="x"), "listed but not cited"),
    ],
)  # fmt: skip
def test_a_wrong_table_of_stacks_is_refused(edit: Callable[[Any], None], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_stacks(_edited("stacks.yaml", edit))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t["loaders"]["vllm"]["names"].append({"pattern": "(", "to": ""}), "no regular expression"),
        (lambda t: t["loaders"]["vllm"]["methods"].pop("fp4-experts"), "methods that are not described"),
        (lambda t: t["loaders"]["sglang"]["switches"].pop("SGLANG_OPT_FUSE_WQA_WKV"), "switches that are not listed"),
        (lambda t: t["loaders"]["hygon"].update(base="sglan"), "is not above it"),
        (lambda t: t["loaders"]["vllm"].update(unfilled="never"), "unfilled"),
        (lambda t: t["sources"].update(hearsay="x"), "listed but not cited"),
    ],
)  # fmt: skip
def test_wrong_loading_rules_are_refused(edit: Callable[[Any], None], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_loaders(_edited("loaders.yaml", edit))


def test_every_loader_is_some_stacks_and_every_form_of_ours_is_served_by_a_stack() -> None:
    assert {stack.loader for stack in load_stacks().values()} - {None} == set(load_loaders())
    for form in OUR_FORMS:
        assert [stack.id for stack in load_stacks().values() if stack.by_form[form].verdict == "loads"], form


WORDS = {OK: "ok", FLAGS: "flags", WRONG: "WRONG", NO: "no", OPEN: "?"}


def documented_row(form: str) -> str:
    """The line of docs/stacks.md for a form: verdict and mark (V verified, S stated, I inferred) for each stack."""
    cells = []
    for name, stack in load_stacks().items():
        judged = judge(stack, RELEASES[form], "mp") if name == "flagos" else judged_as(name, form)
        cells.append(f"{WORDS[judged.verdict]} {judged.mark[0].upper()}")
    return f"| {form} | {' | '.join(cells)} |"


@pytest.mark.parametrize("form", FORMS)
def test_the_table_of_the_docs_is_this(form: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "stacks.md").read_text(encoding="utf-8")
    assert f"| form | {' | '.join(load_stacks())} |" in text.splitlines()
    assert documented_row(form) in text.splitlines()
