"""Benchmarks as tasks of lm-eval: the questions, and how what a model writes is scored.

The YAML files beside this one define the same tasks for lm-eval's own command line; `load` gives them their data:

    lm-eval run --include_path harness --tasks flagrelease_gpqa_diamond --metadata '{"data": "gpqa_diamond.csv"}'

Options are in the order of their hashes and nothing is drawn at random, so that building the documents once more, as
lm-eval does when it scores, gives the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from flagrelease.records.rules import BenchmarkRules
from flagrelease.validate.exams.exam import Exam, read_exam
from flagrelease.validate.exams.extraction import Extracted, extract, final_text
from flagrelease.validate.exams.latex import last_box

Document = dict[str, Any]
NAME = "flagrelease_exam"


def load(data: str, preset: str, **_: Any) -> dict[str, Any]:
    """lm-eval's hook for data of its own: the split `test` of the user's file `data`, asked as `preset` says."""
    rules = BenchmarkRules.model_validate({"preset": preset})
    return documents(read_exam(rules, [Path(data)]))


def documents(exam: Exam) -> dict[str, Any]:
    """The split `test`, in memory: a cache of `datasets` on the disk would hold the questions."""
    from datasets import Dataset

    kind = exam.rules.kind
    rows = [{"id": item.id, "prompt": item.prompt, "answer": item.answer, "kind": kind} for item in exam.items]
    return {"test": Dataset.from_list(rows)}


def prompt(document: Document) -> str:
    """The user's turn."""
    return str(document["prompt"])


def target(document: Document) -> str:
    """The right answer."""
    return str(document["answer"])


def score(document: Document, results: list[list[str]]) -> dict[str, float]:
    """Means over the repeats of one document: of right answers, and of texts without an answer.

    Expressions, code and instructions are marked where they are journalled: their texts here are the marks in a box.
    """
    (texts,) = results
    kind = document["kind"]
    given = [
        extract(final_text(text, reasons=False), kind) if kind in get_args(Extracted) else last_box(text)
        for text in texts
    ]
    return {
        "accuracy": sum(answer == document["answer"] for answer in given) / len(given),
        "invalid": sum(answer is None for answer in given) / len(given),
    }


def definition(exam: Exam, repeats: int) -> dict[str, Any]:
    """The task that `exam` is, each question `repeats` times."""
    rules = exam.rules
    sampling = {"do_sample": True, "temperature": rules.temperature, "top_p": rules.top_p}
    return {
        "task": NAME,
        "custom_dataset": lambda **_: documents(exam),
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": prompt,
        "doc_to_target": target,
        "process_results": score,
        "generation_kwargs": {"until": [], "max_gen_toks": rules.max_tokens, **sampling},
        "repeats": repeats,
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": repeats}]}],
        "metric_list": [
            {"metric": "accuracy", "aggregation": "mean", "higher_is_better": True},
            {"metric": "invalid", "aggregation": "mean", "higher_is_better": False},
        ],
        "metadata": {"version": 1.0},
    }
