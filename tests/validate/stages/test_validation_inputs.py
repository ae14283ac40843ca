"""What a validation refuses, by name; and endpoints that misbehave: nothing that was answered is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from dataset_standin import dataset_hub
from endpoint_standin import Answer, Standin
from engine_checkpoint import Checkpoint, small_config
from scripted_exam import choice_records, write_jsonl
from small_tokenizer import write_tokenizer
from small_validation import LOGITS, QUESTIONS, Workshop, recipe, stage_of, verdicts, write_recipe

from flagrelease import cli
from flagrelease.engine import session
from flagrelease.validate import commands
from flagrelease.validate.baseline import BaselineFolder
from flagrelease.validate.exams.hub import download
from flagrelease.validate.logits import record
from flagrelease.validate.stages import asking, preconditions
from flagrelease.validate.stages.model_stages import BenchmarksStage

Said = pytest.CaptureFixture[str]


def refused(words: list[str], code: int, said: str, capfd: Said) -> None:
    assert cli.main(words) == code
    assert said in capfd.readouterr().err


def test_what_is_no_release(workshop: Workshop, tmp_path: Path, capfd: Said) -> None:
    release = shutil.copytree(workshop.release("bf16"), tmp_path / "bf16-hf")
    (release / "manifest.json").unlink()
    refused(workshop.validation(release, tmp_path / "out"), 5, "not a release, or its conversion did not", capfd)
    refused(workshop.validation(tmp_path / "nowhere", tmp_path / "out"), 5, "nowhere", capfd)
    inside = workshop.release("bf16") / "report"
    refused(workshop.validation(workshop.release("bf16"), inside), 2, "is inside the release", capfd)
    assert not (tmp_path / "out").exists()
    assert not inside.exists()


def test_a_recipe_of_something_else(workshop: Workshop, tmp_path: Path, capfd: Said) -> None:
    document = recipe(workshop.source)
    cases = [
        (document | {"model": "other-v4"}, "is of 'other-v4', the release of 'small-v4'"),
        (document | {"releases": {"hygon": {"dtype": "bf16", "layout": "hf"}}}, "has no release for 'ascend'"),
        (document | {"releases": {"ascend": {"dtype": "bf16", "layout": "mp2"}}}, "ascend gets bf16 in mp2"),
    ]
    for number, (changed, said) in enumerate(cases):
        path = write_recipe(tmp_path / f"{number}.yaml", changed)
        words = workshop.validation(workshop.release("bf16"), tmp_path / "out", "--recipe", str(path))
        refused(words, 2, said, capfd)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", f"gpqa={__file__}"], "the rules have no such benchmark (they have: choices)"),
        (["--data", "choices"], "NAME=FILE is expected"),
        (["--model", "m"], "--model belongs to --endpoint"),
        (["--concurrency", "2"], "--concurrency belongs to --endpoint"),
        (["--timeout", "60"], "--timeout belongs to --endpoint"),
        (["--endpoint", "http://127.0.0.1:1/v1"], "--endpoint needs --model"),
        (["--endpoint", "127.0.0.1:1", "--model", "m"], "an http or https address"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "--timeout", "inf"], "--timeout inf: a finite number"),
        (["--chip", "abacus"], "'abacus' is not in the table"),
        (["--device", "abacus"], "device 'abacus' is none of"),
    ],
)
def test_arguments_that_contradict_each_other(
    workshop: Workshop, tmp_path: Path, more: list[str], said: str, capfd: Said
) -> None:
    refused(workshop.validation(workshop.release("bf16"), tmp_path / "out", *more), 2, said, capfd)


def test_data_without_its_columns(workshop: Workshop, tmp_path: Path, capfd: Said) -> None:
    lines = [json.loads(line) for line in workshop.data.read_text().splitlines()]
    for line in lines:
        del line["Correct Answer"]
    data = tmp_path / "choices.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = workshop.validation(workshop.release("bf16"), tmp_path / "out")
    words[words.index(f"choices={workshop.data}")] = f"choices={data}"
    refused(words, 2, "choices.jsonl:1: lacks 'Correct Answer'", capfd)
    assert not (tmp_path / "out").exists(), "it was found after the logits stage, hours later"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"dataset": "someone/missing"}, 6, "datasets/someone/missing@main: data/0.jsonl: HTTP 404"),
        ({"revision": "v9"}, 6, "datasets/someone/choices@v9: data/0.jsonl: HTTP 404"),
        ({"files": ["data/nameless.jsonl"]}, 2, "data/nameless.jsonl:1: lacks"),
    ],
)
def test_data_of_the_hub_is_looked_at_before_the_first_stage(
    workshop: Workshop, tmp_path: Path, change: dict[str, object], code: int, said: str,
    monkeypatch: pytest.MonkeyPatch, capfd: Said,
) -> None:  # fmt: skip
    """A dataset that does not exist, or lacks a field, was found after the logits: hours later, the model loaded."""
    document = recipe(workshop.source)
    choices = document["validation"]["benchmarks"]["choices"]
    monkeypatch.setattr(BenchmarksStage, "missing", lambda stage: None)
    choices |= {"files": ["data/0.jsonl"]} | change
    words = workshop.validation(workshop.release("bf16"), tmp_path / "out")
    words[words.index(str(workshop.recipe))] = str(write_recipe(tmp_path / "hub.yaml", document))
    at = words.index("--data")
    recording = workshop.recording(tmp_path / "baseline", "--recipe", str(tmp_path / "hub.yaml"))
    given = recording.index("--data")
    with dataset_hub() as address:
        monkeypatch.setattr(asking, "download", partial(download, endpoint=address, cache=tmp_path / "cache"))
        del words[at : at + 2], recording[given : given + 2]
        refused(words, code, said, capfd)
        refused(recording, code, said, capfd)
    assert not (tmp_path / "out" / "state" / "integrity.json").exists()
    assert not (tmp_path / "baseline" / "logits").exists()


def test_a_baseline_of_another_model_or_under_other_rules(workshop: Workshop, tmp_path: Path, capfd: Said) -> None:
    release, out = workshop.release("bf16"), tmp_path / "out"
    other = tmp_path / "other"
    Checkpoint(small_config(), seed=77).write_hf(other, "native")
    write_tokenizer(other)
    words = workshop.recording(tmp_path / "b", "--part", "logits")
    words[words.index(str(workshop.source))] = str(other)
    assert cli.main(words) == 0
    refused(workshop.validation(release, out, "--baseline", str(tmp_path / "b")), 5, "another model", capfd)
    changed = recipe(workshop.source)
    changed["validation"]["logits"] = changed["validation"]["logits"] | {
        "replay": changed["validation"]["logits"]["replay"] | {"tokens": 36}
    }
    path = str(write_recipe(tmp_path / "tokens.yaml", changed))
    refused(workshop.validation(release, tmp_path / "o2", "--recipe", path), 5, "recorded under other rules", capfd)
    refused(workshop.validation(release, out, "--baseline", str(tmp_path / "none")), 2, "no baseline", capfd)


def test_answers_under_other_rules_are_refused_before_the_logits(
    workshop: Workshop, tmp_path: Path, capfd: Said
) -> None:
    """They were compared after all answers of this side had been given."""
    asked = {"prompts": 1, "repeats": 4, "max_tokens": 5, "margin": 90}
    path = str(write_recipe(tmp_path / "other.yaml", recipe(workshop.source, behaviour=asked)))
    words = workshop.validation(workshop.release("bf16"), tmp_path / "out", "--recipe", path)
    refused(words, 5, "behaviour.json: was recorded under other rules of behaviour", capfd)
    assert not (tmp_path / "out" / "state" / "integrity.json").exists()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is loaded, for a stage or for a recording."""

    def load(*arguments: object, **more: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(session, "load", load)
    monkeypatch.setattr(record, "load", load)


def exchange(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("logits/baseline.json", lambda path: path.write_text("{}"), "baseline.json"),
        ("logits/oracle/0003.safetensors", Path.unlink, "0003.safetensors: not found"),
        ("logits/floor-layers/0003.safetensors", exchange, "SHA-256 is not the one"),
        ("logits/documents.jsonl", exchange, "SHA-256 is not the one"),
    ],
)
def test_damaged_logits_of_a_baseline_are_refused_before_any_stage(
    workshop: Workshop, tmp_path: Path, name: str, harm: Callable[[Path], object], said: str, capfd: Said
) -> None:
    """They were found by the logits stage: after every byte of the release had been read and the model loaded."""
    baseline = shutil.copytree(workshop.baseline, tmp_path / "baseline")
    harm(baseline / name)
    words = workshop.validation(workshop.release("bf16"), tmp_path / "out", "--baseline", str(baseline))
    refused(words, 5, said, capfd)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_logits_under_other_rules_are_refused_before_any_stage(workshop: Workshop, tmp_path: Path, capfd: Said) -> None:
    """As above, and `run` found it after the conversion, too."""
    replay = LOGITS["replay"] | {"tokens": 36}
    path = str(write_recipe(tmp_path / "tokens.yaml", recipe(workshop.source, logits=LOGITS | {"replay": replay})))
    words = workshop.validation(workshop.release("bf16"), tmp_path / "out", "--recipe", path)
    refused(words, 5, "rules.tokens is 40, this release has 36: recorded under other rules", capfd)
    assert not (tmp_path / "out").exists()
    words = ["run", path, "--out", str(tmp_path / "run"), "--device", "cpu", "--chip", "ascend"]
    words += ["--data", f"choices={workshop.data}"]
    refused([*words, "--baseline", str(workshop.baseline)], 5, "recorded under other rules", capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_run_refuses_a_baseline_of_another_model_before_converting(
    workshop: Workshop, tmp_path: Path, capfd: Said
) -> None:
    """It was found after the conversion."""
    other = tmp_path / "other"
    Checkpoint(small_config(), seed=77).write_hf(other, "native")
    write_tokenizer(other)
    words = ["run", str(workshop.recipe), "--checkpoint", str(other), "--out", str(tmp_path / "run")]
    words += ["--device", "cpu", "--chip", "ascend", "--data", f"choices={workshop.data}", "--baseline"]
    refused([*words, str(workshop.baseline)], 5, "another model", capfd)
    without_logits = shutil.copytree(workshop.baseline, tmp_path / "baseline")
    shutil.rmtree(without_logits / "logits")
    refused([*words, str(without_logits)], 5, "answers of source", capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_other_questions_than_the_native_model_was_asked_are_refused_before_any_stage(
    workshop: Workshop, tmp_path: Path, capfd: Said
) -> None:
    """It was found after the logits stage."""
    data = write_jsonl(tmp_path / "choices.jsonl", choice_records(QUESTIONS + 1))
    words = workshop.validation(workshop.release("bf16"), tmp_path / "out")
    words[words.index(f"choices={workshop.data}")] = f"choices={data}"
    refused(words, 5, "the native side sat another exam", capfd)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_two_recordings_into_one_folder(workshop: Workshop, tmp_path: Path, capfd: Said) -> None:
    """The second one loaded the model and wrote between the files of the first."""
    out = tmp_path / "baseline"
    with BaselineFolder(out).locked():
        refused(workshop.recording(out), 4, f"{out}: in use by another flagrelease process (process ", capfd)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["lock"]


def test_starting_ranks_opens_the_baseline_and_looks_for_the_device_once(
    workshop: Workshop, validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were done for the decision to start ranks, and again for the stages that come before the ranks start."""
    asked: list[str] = []
    opened, found = BaselineFolder.open, preconditions.find_device

    def start(context: object, ranks: int) -> None:
        assert ranks == 2
        raise typer.Exit(0)

    def count_device(*arguments: Any, **more: Any) -> Any:
        asked.append("device")
        return found(*arguments, **more)

    def count_baseline(folder: Path) -> BaselineFolder:
        asked.append("baseline")
        return opened(folder)

    monkeypatch.setattr(commands, "start_ranks", start)
    monkeypatch.setattr(preconditions, "find_device", count_device)
    monkeypatch.setattr(BaselineFolder, "open", count_baseline)
    out = shutil.copytree(validated, tmp_path / "out")
    assert cli.main(workshop.validation(workshop.release("bf16"), out, "--ranks", "2")) == 0
    assert asked == ["baseline", "device"]


def test_a_first_validation_without_the_source_does_not_block_a_second_one_with_it(
    workshop: Workshop, tmp_path: Path, capfd: Said
) -> None:
    """It was refused: "the stage weights was finished with another source"."""
    out = tmp_path / "out"
    with_source = workshop.validation(workshop.release("bf16"), out, "--until", "weights")
    without = list(with_source)
    del without[without.index("--source") : without.index("--source") + 2]
    assert cli.main(without) == 0
    integrity = (out / "state" / "integrity.json").stat().st_mtime_ns
    details = [json.loads((out / "report.json").read_bytes())["stages"][1]["detail"]]
    for words in (with_source, without):
        assert cli.main(words) == 0
        details.append(json.loads((out / "report.json").read_bytes())["stages"][1]["detail"])
    assert "the source was not at hand" in details[0]
    assert "bit for bit what a second decoder makes of the source" in details[1]
    assert details[2] == details[1], "what was proved stays proved where the source is not at hand"
    assert (out / "state" / "integrity.json").stat().st_mtime_ns == integrity, "stages with the same inputs are kept"
    other = tmp_path / "other"
    Checkpoint(small_config(), seed=77).write_hf(other, "native")
    words = [word if word != str(workshop.source) else str(other) for word in with_source]
    refused(words, 4, "weights was finished with another source", capfd)


@pytest.mark.parametrize("name", ["benchmarks/choices.json", "behaviour.json"])
def test_answers_of_another_model(workshop: Workshop, validated: Path, tmp_path: Path, name: str, capfd: Said) -> None:
    baseline = shutil.copytree(workshop.baseline, tmp_path / "baseline")
    path = baseline / name
    identity = json.loads((workshop.release("bf16") / "manifest.json").read_text())["source"]["identity"]
    path.write_text(path.read_text().replace(identity, "0" * 64))
    out = shutil.copytree(validated, tmp_path / "out")
    for stage in ("benchmarks", "behaviour"):
        (out / "state" / f"{stage}.json").unlink()
    words = workshop.validation(workshop.release("bf16"), out, "--baseline", str(baseline))
    refused(words, 5, "another model", capfd)


def test_a_baseline_with_a_part_missing(workshop: Workshop, tmp_path: Path) -> None:
    baseline = shutil.copytree(workshop.baseline, tmp_path / "baseline")
    shutil.rmtree(baseline / "logits")
    (baseline / "continuations.json").unlink()
    (baseline / "benchmarks" / "choices.json").unlink()
    (baseline / "behaviour.json").rename(baseline / "behaviour.bak")
    (baseline / "long-context").mkdir()
    (baseline / "long-context" / "4096.json").write_text("of rules that this recipe does not have")
    words = workshop.validation(workshop.release("bf16"), tmp_path / "out", "--baseline", str(baseline))
    assert cli.main(words) == 7
    names = ("logits", "benchmarks", "behaviour")
    assert [stage_of(tmp_path / "out", name)["detail"] for name in names] == [
        "Not run: the baseline has no logits.",
        "Not run: the baseline has no answers to choices.",
        "Not run: the baseline has no behaviour.",
    ]


def test_an_endpoint_answers_the_benchmarks(workshop: Workshop, tmp_path: Path, capfd: Said) -> None:
    baseline, out = tmp_path / "baseline", tmp_path / "out"
    with Standin() as server:
        there = ["--endpoint", server.url, "--model", "m", "--concurrency", "1", "--timeout", "60"]
        capfd.readouterr()
        assert cli.main(workshop.recording(baseline, "--part", "benchmarks", "--json", *there)) == 0
    assert json.loads(capfd.readouterr().out) == {"out": str(baseline), "parts": ["benchmarks/choices"]}
    assert server.most_at_once == 1
    asked = 0

    def fail_midway(request: object) -> Answer | None:
        nonlocal asked
        asked += 1
        return Answer(status=403) if asked > 6 else None

    with Standin(fail_midway) as server:
        there = ["--endpoint", server.url, "--model", "m"]
        words = workshop.validation(workshop.release("bf16"), out, "--baseline", str(baseline), *there)
        refused(words, 6, "HTTP 403", capfd)
        journal = out / "work" / "benchmarks" / "choices.jsonl"
        kept = journal.read_bytes().count(b"\n") - 1
        assert kept >= 1
        server.behave = lambda request: None
        before = len(server.requests)
        assert cli.main(words) == 7
        assert len(server.requests) - before == QUESTIONS * 4 - kept, "only what was not answered is asked"
    assert verdicts(out) == {
        "integrity": "pass", "weights": "pass", "logits": "not-run", "benchmarks": "not-informative",
        "behaviour": "not-run",
    }  # fmt: skip
    document = json.loads((out / "report.json").read_bytes())
    (computed,) = document["computed_on"]
    assert (computed["by"], computed["model"], computed["stages"]) == ("endpoint", "m", ["benchmarks"])
    said = f"answered by the server at {server.url}, which says it is BaseHTTP/"
    assert said in capfd.readouterr().out
    benchmarks = stage_of(out, "benchmarks")
    assert "nothing in its answers shows its weights" in benchmarks["leaves_open"][1]


def test_an_endpoint_is_asked_for_behaviour_and_its_key_is_nowhere(
    workshop: Workshop, tmp_path: Path, capfd: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sides. A server that quotes the key in its complaint, and one that is restarted in another version."""
    monkeypatch.setenv("SOME_KEY", KEY := "sk-planted-5e2")
    baseline, out = tmp_path / "baseline", tmp_path / "out"
    listed = Answer(document={"data": [{"id": "m", "owned_by": "vllm"}]})
    at = {"/v1/models": listed, "/version": Answer(document={"version": "0.33.0"})}
    said = ""
    with Standin(lambda request: Answer(401, {"error": {"message": f"{KEY} is wrong"}}), at) as server:
        there = ["--endpoint", server.url, "--model", "m", "--key-env", "SOME_KEY"]
        capfd.readouterr()
        assert cli.main(workshop.recording(baseline, "--part", "behaviour", *there)) == 6
        server.behave = lambda request: None
        assert cli.main(workshop.recording(baseline, "--part", "behaviour", *there)) == 0
        words = workshop.validation(workshop.release("bf16"), out, "--baseline", str(baseline), *there)
        assert cli.main(words) == 7
        server.at["/version"] = Answer(document={"version": "0.34.0"})
        assert cli.main(words) == 4
        said = "".join(capfd.readouterr())
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert "was begun with version (the server's word) 0.33.0, here it is 0.34.0" in said
    report = json.loads((out / "report.json").read_bytes())
    assert report["commands"][0].split("--endpoint")[1] == f" {server.url} --model m --key-env SOME_KEY --device cpu"
    told = {name: value for name, value in report["environment"].items() if name.endswith("(the server's word)")}
    assert told.keys() == {f"{name} (the server's word)" for name in ("server", "version", "owned_by")}
    assert "device" not in report["environment"], "nothing was loaded here"
    behaviour = stage_of(out, "behaviour")
    assert behaviour["verdict"] != "fail"
    assert behaviour["figures"]["served"] == ["this release", "native"]
    written = [path.read_bytes() for folder in (baseline, out) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(KEY.encode() in content for content in [*written, said.encode()])
