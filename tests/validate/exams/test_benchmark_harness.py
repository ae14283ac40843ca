"""lm-eval's own runner with our tasks and our model, and its traps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from scripted_exam import MARKER, choice_exam, choice_records, write_jsonl

from flagrelease.engine.batch.scheduler import Scheduler
from flagrelease.errors import UsageError, VerificationError
from flagrelease.model.v4.chat import BOS
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.records.rules import BENCHMARK_PRESETS, BenchmarkRules
from flagrelease.validate.exams.exam import read_exam
from flagrelease.validate.exams.harness import tasks
from flagrelease.validate.exams.harness.model import EngineLM

HARNESS = Path(tasks.__file__).parent
TASKS = {"flagrelease_gpqa_diamond": "gpqa-diamond", "flagrelease_aime": "aime"}


class Knows(LM):
    """Knows the answers of an exam, and writes them as a model with reasoning does."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__()
        self.answers = answers
        self.options: list[dict[str, Any]] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.options = [request.args[1] for request in requests]
        return [f"\\boxed{{D}}? Question: no.</think>It is \\boxed{{{self.answers[r.args[0]]}}}." for r in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


def evaluate(model: LM | str, args: str | None, what: list[Any], manager: TaskManager, **how: Any) -> dict[str, Any]:
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"))
    results = simple_evaluate(model, args, what, task_manager=manager, bootstrap_iters=0, **seeds, **how)
    assert results is not None
    return dict(results)


def manager(data: Path) -> TaskManager:
    return TaskManager(include_path=str(HARNESS), include_defaults=False, metadata={"data": str(data)})


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "choices.jsonl", choice_records(6))


@pytest.fixture
def no_dataset_cache() -> Iterator[None]:
    datasets.disable_caching()
    yield
    datasets.enable_caching()


@pytest.mark.parametrize(("name", "preset"), TASKS.items())
def test_the_yaml_files_are_the_presets(name: str, preset: str, tmp_path: Path) -> None:
    records = choice_records(2) if "gpqa" in preset else [{"problem": "1 + 1?", "answer": "02"}]
    data = write_jsonl(tmp_path / "data.jsonl", records)
    rules = BenchmarkRules.model_validate({"preset": preset})
    exam = read_exam(rules, [data])
    loaded = manager(data).load([name])["tasks"][name]
    written, made = loaded.config.to_dict(), tasks.definition(exam, rules.repeats)
    for key in made.keys() - {"task", "custom_dataset", "metadata", "doc_to_text", "doc_to_target", "process_results"}:
        assert written[key] == made[key], key
    documents = list(loaded.test_docs())
    assert [document["prompt"] for document in documents] == [item.prompt for item in exam.items]
    assert [loaded.doc_to_target(document) for document in documents] == [item.answer for item in exam.items]
    assert loaded.VERSION == 1.0


def test_there_is_a_yaml_file_for_every_preset_that_lm_eval_marks_by_itself() -> None:
    """Other kinds need what its command line has no place for: a sandbox, tests, rules."""
    read = {name for name, said in BENCHMARK_PRESETS.items() if said["kind"] in ("multiple-choice", "integer")}
    assert set(TASKS.values()) == read
    assert {path.stem for path in HARNESS.glob("*.yaml")} == TASKS.keys()


@pytest.mark.usefixtures("no_dataset_cache")
def test_a_model_that_knows_everything_has_all_points(choices: Path) -> None:
    """Trap 1: where options are shuffled by a generator, the key is shuffled anew for scoring, and 33 % come out."""
    exam = read_exam(BenchmarkRules.model_validate({"preset": "gpqa-diamond"}), [choices])
    model = Knows({item.prompt: item.answer for item in exam.items})
    results = evaluate(model, None, ["flagrelease_gpqa_diamond"], manager(choices))
    scores = results["results"]["flagrelease_gpqa_diamond"]
    assert (scores["accuracy,all"], scores["invalid,all"]) == (1, 0)
    assert len(model.options) == 48
    assert all(options["until"] == [] and options["do_sample"] for options in model.options)  # traps 6 and 7
    hashes = [[s[key] for s in results["samples"]["flagrelease_gpqa_diamond"]] for key in ("doc_hash", "target_hash")]
    again = evaluate(model, None, ["flagrelease_gpqa_diamond"], manager(choices))["samples"]["flagrelease_gpqa_diamond"]
    assert hashes == [[s[key] for s in again] for key in ("doc_hash", "target_hash")]


def test_all_repeats_count(choices: Path) -> None:
    """Trap 2: the default filter scores the first of k answers."""
    exam = read_exam(BenchmarkRules.model_validate({"preset": "gpqa-diamond"}), [choices])

    class Changing(Knows):
        def generate_until(self, requests: list[Instance]) -> list[str]:
            answers = super().generate_until(requests)
            return [text if i % 8 < 6 else "no idea" for i, text in enumerate(answers)]

    model = Changing({item.prompt: item.answer for item in exam.items})
    scores = evaluate(model, None, ["flagrelease_gpqa_diamond"], manager(choices))["results"]
    assert scores["flagrelease_gpqa_diamond"]["accuracy,all"] == pytest.approx(0.75)
    assert scores["flagrelease_gpqa_diamond"]["invalid,all"] == pytest.approx(0.25)


def test_lm_evals_runner_uses_the_engine_by_name(small_release: Path, tmp_path: Path) -> None:
    exam = choice_exam(tmp_path, count=2, max_tokens=10)
    args = f"release={small_release},numerics=bf16,dtype=float32,on=cpu,context=400,batch=4"
    results = evaluate(
        "flagrelease", args, [tasks.definition(exam, 4)], TaskManager(include_defaults=False), apply_chat_template=True
    )
    samples = results["samples"][tasks.NAME]
    assert [sample["arguments"][0][0] for sample in samples] == [
        f"{BOS}<｜User｜>{item.prompt}<｜Assistant｜></think>" for item in exam.items
    ]
    assert all(len(set(sample["resps"][0])) == 4 for sample in samples)  # each repeat has a seed of its own
    assert results["config"]["model"] == "flagrelease"
    assert 0 <= results["results"][tasks.NAME]["accuracy,all"] <= 1


def request(*arguments: Any, document: int = 0) -> Instance:
    return Instance("generate_until", {}, arguments, 0, ("task", document, 1))


@pytest.fixture
def model(scheduler: Scheduler) -> EngineLM:
    return EngineLM(scheduler, efforts_of("preview").of("chat"), seed=0)


def test_log_likelihoods_are_teacher_forced(model: EngineLM) -> None:
    pairs = [("The colour of", " grass"), ("", "sky"), ("Two words", " and a longer continuation of them")]
    scores = model.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(pairs, scores, strict=True):
        head, tail = (model.scheduler.tokenizer.encode(text) for text in (context, continuation))
        expected, all_best = 0.0, True
        for n in range(len(tail)):  # a token at a time, each by a forward pass of its own
            last = model.scheduler.runner.model.logits([0, *head, *tail[:n]])[-1].log_softmax(-1)
            expected += float(last[tail[n]])
            all_best &= int(last.argmax()) == tail[n]
        assert score == pytest.approx(expected, abs=1e-3)
        assert greedy is all_best
    rolling = model.loglikelihood_rolling([request("sky")])
    assert rolling[0] == pytest.approx(scores[1][0], abs=1e-3)


def test_greedy_continuations_are_greedy(model: EngineLM) -> None:
    options = {"until": [], "max_gen_toks": 8, "temperature": 0.0, "do_sample": False}
    (text,) = model.generate_until([request("Once", options)])
    tokens = [0, *model.scheduler.tokenizer.encode("Once")]
    for _ in range(8):
        tokens.append(int(model.scheduler.runner.model.logits(tokens)[-1].argmax()))
    assert text == model.scheduler.tokenizer.decode(tokens[5:])


def test_repeats_differ_and_come_again(model: EngineLM) -> None:
    options = {"until": [], "max_gen_toks": 8, "temperature": 1.0, "do_sample": True}
    one, other = request("Once", options), request("Once", options, document=1)
    texts = model.generate_until([one, one, one, other])
    assert len(set(texts)) == 4
    assert model.generate_until([other, one, one]) == [texts[3], texts[0], texts[1]]


def test_a_stop_string_ends_a_text_and_none_is_added(model: EngineLM) -> None:
    """Trap 6: a missing `until` silently becomes two newlines, and "Question:" cuts reasoning."""
    free = {"until": [], "max_gen_toks": 30, "temperature": 1.0, "do_sample": True}
    (text,) = model.generate_until([request("Once", free)])
    (cut,) = model.generate_until([request("Once", free | {"until": [text[5:8]]})])
    assert cut == text[: text.index(text[5:8])]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.7}, "temperature 0.7 and do_sample False contradict"),  # trap 7
        ({"do_sample": True}, "temperature 0 and do_sample True contradict"),
        ({"top_k": 3}, "gen_kwargs top_k: known are"),
    ],
)
def test_options_that_would_be_ignored_are_refused(model: EngineLM, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        model.generate_until([request("Once", options)])


def test_there_is_one_begin_of_sentence_token(model: EngineLM) -> None:
    prompt = model.apply_chat_template([{"role": "user", "content": "Hi"}])
    for text in (prompt, "Hi", ""):
        tokens = model.tok_encode(text)
        assert (tokens[0], tokens.count(0)) == (0, 1)
    assert model.tok_encode("Hi", add_special_tokens=False) == model.tok_encode("Hi")[1:]
    for text in (BOS + prompt, f"Hi {BOS}"):
        with pytest.raises(VerificationError, match="begin-of-sentence"):
            model.tok_encode(text)


@pytest.mark.slow
def test_lm_evals_command_line_knows_the_engine(small_release: Path, choices: Path) -> None:
    """It looks through its 14,000 own tasks first."""
    command = [
        sys.executable, "-m", "flagrelease.validate.exams.harness", "run", "--model", "flagrelease",
        "--model_args", f"release={small_release},numerics=bf16,on=cpu,context=800", "--include_path", str(HARNESS),
        "--tasks", "flagrelease_gpqa_diamond", "--metadata", json.dumps({"data": str(choices)}),
        "--gen_kwargs", "max_gen_toks=2", "--apply_chat_template", "--limit", "1",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "flagrelease_gpqa_diamond" in done.stdout
    assert MARKER not in done.stdout + done.stderr
