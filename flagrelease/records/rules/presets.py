"""Benchmarks that a recipe names in a word: `{preset: gpqa-diamond}`."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["gpqa-diamond", "aime", "gsm8k", "math-500", "humaneval", "livecodebench", "ifeval"]

BENCHMARK_PRESETS: dict[str, dict[str, Any]] = {
    "gpqa-diamond": {
        "title": "GPQA Diamond",
        "kind": "multiple-choice",
        "dataset": "Idavidrein/gpqa",
        "files": ("gpqa_diamond.csv",),
        "revision": "main",
        "prompt": "Answer the following multiple choice question. Reason step by step, and put the letter of the right "
        "option within \\boxed{}, as in \\boxed{C}.\n\n{question}\n\n{options}",
        "mode": "thinking",
        "max_tokens": 65536,
        "margin": 2.0,
        "repeats": 8,
        "questions": 198,
    },
    "aime": {
        "title": "AIME 2025",
        "kind": "integer",
        "dataset": "math-ai/aime25",
        "files": ("test.jsonl",),
        "revision": "main",
        "prompt": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        "mode": "thinking",
        "max_tokens": 65536,
        "margin": 3.33,
        "repeats": 32,
        "questions": 30,
    },
    # Short ones, which move when a port breaks: an answer has some hundred tokens, without thinking.
    "gsm8k": {
        "title": "GSM8K",
        "kind": "number",
        "dataset": "openai/gsm8k",
        "files": ("main/test-00000-of-00001.parquet",),
        "revision": "main",
        "prompt": "{question}\n\nReason step by step, and put the final number within \\boxed{}.",
        "mode": "chat",
        "max_tokens": 2048,
        "margin": 1.0,
        "repeats": 4,
        "questions": 1319,
    },
    "math-500": {
        "title": "MATH-500",
        "kind": "expression",
        "dataset": "HuggingFaceH4/MATH-500",
        "files": ("test.jsonl",),
        "revision": "main",
        "prompt": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        "mode": "chat",
        "max_tokens": 8192,
        "margin": 2.0,
        "repeats": 4,
        "questions": 500,
    },
    "humaneval": {
        "title": "HumanEval",
        "kind": "code",
        "dataset": "openai/openai_humaneval",
        "files": ("openai_humaneval/test-00000-of-00001.parquet",),
        "revision": "main",
        "prompt": "Complete the function. Answer with the whole function in one block of Python code.\n\n"
        "```python\n{question}\n```",
        "mode": "chat",
        "max_tokens": 2048,
        "margin": 3.0,
        "repeats": 4,
        "questions": 164,
    },
    # Its programs with public cases; the hidden cases are a pickle, which is not opened. Give a file of its questions.
    "livecodebench": {
        "title": "LiveCodeBench, public cases",
        "kind": "code",
        "dataset": "livecodebench/code_generation_lite",
        "files": ("test6.jsonl",),
        "revision": "main",
        "prompt": "{question}\n\nWrite a Python program that reads from standard input and writes to standard output. "
        "Answer with the whole program in one block of Python code.",
        "mode": "thinking",
        "max_tokens": 65536,
        "margin": 5.0,
        "repeats": 4,
    },
    "ifeval": {
        "title": "IFEval, rules without a language model",
        "kind": "instructions",
        "dataset": "google/IFEval",
        "files": ("ifeval_input_data.jsonl",),
        "revision": "main",
        "prompt": "{question}",
        "mode": "chat",
        "max_tokens": 4096,
        "margin": 3.0,
        "repeats": 4,
        "questions": 541,
        "subset": True,  # what no rule here decides is left out, and the report says over how many questions it went
        "most_invalid": 5.0,
    },
}
