"""Evaluations and load generators against the server: lm-eval, evalscope, guidellm, aiperf.

Their exit codes say little (guidellm exits 0 when every request was refused), so that their reports are read.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from client_runs import TINY, Run, read_json

pytestmark = pytest.mark.clients

ITEMS = [("The capital of café is", ["Paris", "Ünïcode"]), ("Straße — 北京", ["a", "b"])]
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}]
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/items.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
"""


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with the tokenizer alone: these programs would load a model's configuration."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    return folder


def lm_eval(run: Run, folder: Path, tokenizer: Path, kind: str, url: str, task: str, *more: str) -> list[Any]:
    """Run a task; gives its samples."""
    rows = [json.dumps({"question": q, "choices": choices, "gold": 0}) for q, choices in ITEMS]
    (folder / "items.jsonl").write_text("\n".join(rows), "utf-8")
    for name, text in (("choice", CHOICE), ("writing", WRITING)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    args = f"model=tiny,base_url={url},num_concurrent=2,max_retries=1,tokenizer={tokenizer}"
    run("bench", "lm_eval", "run", "--model", kind, "--tasks", task, "--include_path", folder, "--model_args", args,
        "--output_path", folder / "out", "--log_samples", *more)  # fmt: skip
    (samples,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in samples.read_text("utf-8").splitlines()]


def test_lm_eval_scores_choices(run: Run, model: str, tokenizer: Path, tmp_path: Path) -> None:
    samples = lm_eval(run, tmp_path, tokenizer, "local-completions", f"{model}/v1/completions", "choice")
    for sample in samples:
        question, choices = sample["doc"]["question"], sample["doc"]["choices"]
        for choice, resps in zip(choices, sample["resps"], strict=True):
            ids = [post(f"{model}/tokenize", {"prompt": text})["tokens"] for text in (question, f"{question} {choice}")]
            scored = post(f"{model}/v1/completions", {"model": "tiny", "prompt": ids[1], "max_tokens": 0, "echo": True,
                                                      "logprobs": 0, "temperature": 0})  # fmt: skip
            expected = sum(scored["choices"][0]["logprobs"]["token_logprobs"][len(ids[0]) :])
            assert float(resps[0][0]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "path", "more"),
    [
        ("local-completions", "completions", ()),
        ("local-chat-completions", "chat/completions", ("--apply_chat_template",)),
    ],
)
def test_lm_eval_generates(
    run: Run, model: str, tokenizer: Path, tmp_path: Path, kind: str, path: str, more: tuple[str, ...]
) -> None:
    samples = lm_eval(run, tmp_path, tokenizer, kind, f"{model}/v1/{path}", "writing", *more)
    for sample in samples:
        question = sample["doc"]["question"]
        asked = (
            {"prompt": question}
            if kind == "local-completions"
            else {"messages": [{"role": "user", "content": question}]}
        )
        body = {"model": "tiny", "max_tokens": 8, "temperature": 0, "stop": ["\n"], **asked}
        (choice,) = post(f"{model}/v1/{path}", body)["choices"]
        assert sample["resps"] == [[choice["text"] if "text" in choice else choice["message"]["content"]]]


def test_evalscope_evaluates(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    for split in ("val", "dev"):
        (tmp_path / "asked" / f"tiny_{split}.csv").write_text(
            "question,A,B,C,D,answer\nWhat is one,raven,ember,lemon,delta,A\n"
        )
    datasets = {"general_mcq": {"local_path": str(tmp_path / "asked"), "subset_list": ["tiny"]}}
    run("evalscope", "evalscope", "eval", "--model", "tiny", "--api-url", f"{model}/v1", "--api-key", "none",
        "--eval-type", "openai_api", "--datasets", "general_mcq", "--dataset-args", json.dumps(datasets),
        "--generation-config", '{"max_tokens": 8, "temperature": 0}', "--work-dir", tmp_path / "out")  # fmt: skip
    (predictions,) = (tmp_path / "out").rglob("predictions/**/*.jsonl")
    (line,) = predictions.read_text("utf-8").splitlines()
    assert json.loads(line)["model_output"]["usage"]["output_tokens"] > 0


def test_evalscope_measures(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("".join(f"question number {n}\n" for n in range(6)))
    run("evalscope", "evalscope", "perf", "--url", f"{model}/v1/chat/completions", "--api", "openai", "--model", "tiny",
        "--parallel", 2, "--number", 4, "--dataset", "line_by_line", "--dataset-path", tmp_path / "asked.txt",
        "--max-tokens", 6, "--outputs-dir", tmp_path / "out")  # fmt: skip
    (summary,) = (tmp_path / "out").rglob("benchmark_summary.json")
    numbers = read_json(summary)
    assert (numbers["Success Requests"], numbers["Failed Requests"]) == (4, 0)
    assert numbers["Avg Output Tokens"] > 0


def test_guidellm_measures(run: Run, model: str, tokenizer: Path, tmp_path: Path) -> None:
    run("bench", "guidellm", "run", "--backend", f"kind=openai_http,target={model},model=tiny", "--profile",
        "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=4", "--tokenizer",
        f"kind=huggingface_auto,model={tokenizer}", "--data", "kind=synthetic_text,prompt_tokens=20,output_tokens=6",
        "--output", f"kind=json,path={tmp_path / 'report.json'}", "--disable-console-interactive")  # fmt: skip
    (benchmark,) = read_json(tmp_path / "report.json")["benchmarks"]
    requests = benchmark["requests"]
    assert (len(requests["successful"]), len(requests["errored"])) == (4, 0)
    assert {each["output_metrics"]["text_tokens"] for each in requests["successful"]} == {6}  # ignore_eos was heard


def test_aiperf_measures(run: Run, model: str, tokenizer: Path, tmp_path: Path) -> None:
    # with HF_HUB_OFFLINE it takes a folder for the name of a repository
    run("bench", "aiperf", "profile", "--model", "tiny", "--url", model, "--endpoint-type", "chat", "--streaming",
        "--tokenizer", tokenizer, "--concurrency", 2, "--request-count", 4, "--synthetic-input-tokens-mean", 20,
        "--output-tokens-mean", 6, "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui", "none",
        "--artifact-dir", tmp_path / "out", HF_HUB_OFFLINE="")  # fmt: skip
    report = read_json(tmp_path / "out" / "profile_export_aiperf.json")
    assert report["request_count"]["avg"] == 4
    assert report.get("error_summary") in (None, [])
    assert report["output_sequence_length"]["avg"] == 6
