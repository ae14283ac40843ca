"""Every release format of the small trained model, the whole way: converted, proved, run, judged and published.

One format goes into a hub's stand-in, all of them into a folder. Planted defects show what the logits stage sees when
manifest and bytes agree. All of it is slow; test_validate.py sends a smaller model through the stages in every run.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_standin import TOKEN, HuggingFaceStandIn
from row_defects import DEFECTS, plant
from small_validation import read_report, verdicts, write_recipe

from flagrelease import cli, engine
from flagrelease.engine.numerics import OF_RELEASE
from flagrelease.formats.releases import RELEASE_FORMATS
from flagrelease.publish.publish import publish
from flagrelease.records.manifest import read_manifest
from flagrelease.verify.verify import verify_release

ROOT = Path(__file__).parents[3]
TINY = ROOT / "examples" / "tiny"
CHECKPOINT = TINY / "flagrelease-tiny-v4"
sys.path.insert(0, str(TINY))

import documents  # noqa: E402

CHIP = "nvidia"
STAGES = ("integrity", "weights", "logits")
LOSSY = {"int8", "w8a8-ascend", "fp8-channel"}  # dense FP8 weights, of which few rows are exact
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's own library


# So few tokens are decoded that even without a single difference only this much of a share can be shown.
SHARES = {2: {"tail_share": 0.1, "top1": 0.9, "top1_clear": 0.9, "perplexity": 0.02},
          6: {"tail_share": 0.03, "top1": 0.95, "top1_clear": 0.97}}  # fmt: skip


def shipped_rules(per_file: int) -> dict[str, Any]:
    """recipes/tiny.yaml for every format, over fewer documents, so with wider shares."""
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / "tiny.yaml").read_text())
    recipe["source"]["path"] = str(CHECKPOINT)
    recipe["convert"] = {"lossy_repack": "allow"}
    recipe["releases"] = {CHIP: [{"format": name, "layout": "hf"} for name in RELEASE_FORMATS]}
    rules = recipe["validation"]
    del rules["long_context"]  # 22 s a release
    count = 3 * per_file
    rules["logits"] |= {"min_documents": count, "min_tokens": 100 * count, "min_decode_tokens": 8 * count}
    rules["logits"]["replay"] |= {"documents": count, "decode_tokens": 8}
    rules["logits"]["oracle"] |= SHARES[per_file]
    rules["logits"] |= {"rounded": 15}
    rules["logits"]["native"] |= {"top1_clear": 0.97, "perplexity": 0.1}
    rules["stages"] = list(STAGES)
    del rules["benchmarks"], rules["behaviour"]  # test_tiny_validation.py has them, of fewer formats
    return recipe


@dataclass(frozen=True)
class Formats:
    """All releases, and the source's runs under one set of rules."""

    folder: Path
    recipe: Path

    def release(self, name: str) -> Path:
        return self.folder / "releases" / f"{name}-hf"

    def record(self, per_file: int) -> None:
        texts = [json.dumps(document) for document in documents.documents(per_file)]
        (self.folder / "documents.jsonl").write_text("\n".join(texts) + "\n")
        words = ["baseline", "record", str(CHECKPOINT), "--out", str(self.folder / "baseline"), "--recipe"]
        asked = ["--documents", str(self.folder / "documents.jsonl"), "--device", "cpu", "--part", "logits"]
        assert cli.main([*words, str(self.recipe), *asked]) == 0

    def validate(self, release: Path, out: Path, *more: str) -> int:
        words = ["validate", str(release), "--chip", CHIP, "--recipe", str(self.recipe), "--out", str(out)]
        return cli.main([*words, "--baseline", str(self.folder / "baseline"), "--device", "cpu", *more])


def prepared(folder: Path, per_file: int) -> Formats:
    torch.set_num_threads(1)
    made = Formats(folder, write_recipe(folder / "recipe.yaml", shipped_rules(per_file)))
    assert cli.main(["convert", str(made.recipe), "--out", str(folder / "releases")]) == 0
    made.record(per_file)
    return made


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Formats:
    """Files, weights and logits of six documents."""
    return prepared(tmp_path_factory.mktemp("formats"), 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Formats:
    """The same of 18 documents."""
    return prepared(tmp_path_factory.mktemp("whole"), 6)


def prove_and_run(formats: Formats, name: str) -> None:
    """The second decoder on every byte, and an answer of the engine in the format's own numerics."""
    release = formats.release(name)
    proof = verify_release(release, CHECKPOINT)
    assert proof.passed, [check for check in proof.checks if check.status != "pass"]
    assert bool(read_manifest(release).losses) == (name in LOSSY)
    model, tokenizer = engine.load(release), engine.Tokenizer(release)
    assert model.numerics.name == OF_RELEASE[name]
    item = json.loads((TINY / "tasks" / "integers_year1.jsonl").read_text().splitlines()[0])
    prompt = engine.encode_messages(
        [{"role": "user", "content": f"{item['problem']}\nAnswer:"}], engine.read_efforts(CHECKPOINT).of("chat")
    )
    written = model.generate(tokenizer.encode(prompt), engine.Sampling(temperature=0, max_tokens=32))
    assert f"\\boxed{{{item['answer']}}}" in tokenizer.decode(written)


def judge_and_publish(formats: Formats, name: str, out: Path) -> None:
    assert formats.validate(formats.release(name), out, "--source", str(CHECKPOINT), "--layers") == 0
    assert {stage: verdict for stage, verdict in verdicts(out).items() if stage in STAGES} == dict.fromkeys(
        STAGES, "pass"
    )
    assert read_report(out)["verdict"] == "pass"
    assert cli.main(["publish", str(formats.release(name)), "--chip", CHIP, "--to", str(out / "published"),
                     "--report", str(out / "report.json"), "--yes"]) == 0  # fmt: skip
    assert read_report(out / "published")["verdict"] == "pass"
    assert cli.main(["verify", str(out / "published"), "--source", str(CHECKPOINT)]) == 0


def test_int8_goes_the_whole_way(quick: Formats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prove_and_run(quick, "int8")
    out = tmp_path / "out"
    assert quick.validate(quick.release("int8"), out, "--source", str(CHECKPOINT), "--layers") == 0
    report = read_report(out)
    assert report["verdict"] == "pass"
    assert {name: verdict for name, verdict in verdicts(out).items() if name in STAGES} == dict.fromkeys(STAGES, "pass")
    logits = next(stage for stage in report["stages"] if stage["name"] == "logits")["figures"]
    assert logits["numerics"] == "int8"
    assert {c["reference"] for c in logits["comparisons"] if c["decides"]} == {"oracle"}
    assert logits["ratio"] == {}
    assert logits["layers"]["reference"] == "oracle"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub = HuggingFaceStandIn(tmp_path / "cas")
    try:
        done = publish(
            quick.release("int8"), CHIP, "hf", report=out / "report.json", yes=True, endpoint=hub.url
        )  # fmt: skip
        held = hub.files(done.publication.repo, "main")
    finally:
        hub.close()
    assert {"report.json", "README.md", "manifest.json"} <= set(held)
    files = read_manifest(quick.release("int8")).files
    wanted = {file.path: file.sha256 for file in files if file.path != "README.md"}  # the card stands in its place
    assert wanted.items() <= held.items()


def defective(formats: Formats, name: str, defect: str, folder: Path) -> Path:
    release = shutil.copytree(formats.release(name), folder / f"{name}-hf")
    plant(release, DEFECTS[name][defect])
    return release


@pytest.mark.parametrize(
    ("name", "defect"),
    [("int8", "w2 of experts transposed"), ("fp8-channel", "wo_b read with the neighbouring row's scale")],
)
def test_a_planted_defect_fails_with_the_source_in_weights_and_without_it_in_logits(
    quick: Formats, name: str, defect: str, tmp_path: Path
) -> None:
    release = defective(quick, name, defect, tmp_path)
    assert quick.validate(release, tmp_path / "with", "--source", str(CHECKPOINT)) == 5
    assert verdicts(tmp_path / "with")["weights"] == "fail"
    assert quick.validate(release, tmp_path / "without") == 5
    found = verdicts(tmp_path / "without")
    assert (found["weights"], found["logits"]) == ("pass", "fail")


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASE_FORMATS)
def test_every_format_goes_the_whole_way(whole: Formats, name: str, tmp_path: Path) -> None:
    prove_and_run(whole, name)
    judge_and_publish(whole, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "defect"), [(name, defect) for name in DEFECTS for defect in DEFECTS[name]])
def test_no_planted_defect_passes_with_its_source(whole: Formats, name: str, defect: str, tmp_path: Path) -> None:
    """Without the source the logits are all there is; what they say is printed for docs/validation-defects.md."""
    release = defective(whole, name, defect, tmp_path)
    assert not verify_release(release, CHECKPOINT).passed
    assert whole.validate(release, tmp_path / "out") in (0, 5, 7)
    stage = next(stage for stage in read_report(tmp_path / "out")["stages"] if stage["name"] == "logits")
    print(f"| {name} | {defect} | {stage['verdict']} | {stage['detail']} |")
