"""The part of a card that is about other engines: transformers and vLLM, where they read the files of an hf release."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from flagrelease.publish.records import Records

TRANSFORMERS = "5.23"  # the first that was seen to load a release: tests/publish/test_card.py


def loads_in_transformers(records: Records) -> bool:
    """Whether the files are what transformers reads: whole tensors in BF16."""
    return (records.layout, records.target.dtype) == ("hf", "bf16")


def loads_in_vllm(records: Records) -> bool:
    """Whether the chip table has a vLLM for the chip that reads these files."""
    vllm = records.chip.vllm
    return records.target.mp is None and vllm is not None and records.target.dtype in vllm.dtypes


def other_engines(records: Records) -> Iterator[str]:
    """Lines of the section; none for an mp layout, which is for flagrelease and FlagOS alone."""
    if not (loads_in_transformers(records) or loads_in_vllm(records)):
        return
    yield "## Other engines"
    if loads_in_transformers(records):
        yield from _transformers(records)
    if loads_in_vllm(records):
        yield from _vllm(records)


def _transformers(records: Records) -> Iterator[str]:
    module = records.chip.torch_module
    yield ""
    yield f"transformers {TRANSFORMERS} or newer loads the files: tried with a small model on a CPU, not on this chip."
    yield "It knows no chat format of DeepSeek-V4: prompts are written by `encoding/` of the release."
    if records.nodes > 1:
        yield "It knows one node only: what its cards do not hold is kept in the host's memory, and is slow."
    yield ""
    yield "```python"
    if module is not None:
        yield f"import {module}  # the chip's torch device"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    yield 'model = AutoModelForCausalLM.from_pretrained(".", dtype="bfloat16", device_map="auto")  # needs accelerate'
    yield 'tokens = tokenizer("The capital of France is", return_tensors="pt").to(model.device)'
    yield "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=8)[0]))"
    yield "```"


def _vllm(records: Records) -> Iterator[str]:
    vllm = records.chip.vllm
    assert vllm is not None
    by = "vLLM" if vllm.plugin is None else f"vLLM with {vllm.plugin}"
    yield ""
    yield f"{by} has this model in this format by its own sources; nobody has run the command with this release yet."
    if records.nodes > 1:
        yield f"It is for a Ray cluster of the {records.nodes} nodes."
    yield ""
    yield "```bash"
    yield f"{' '.join([*vllm.environment, 'vllm serve .'])} --served-model-name {shlex.quote(records.recipe.model)} \\"
    yield "  --tokenizer-mode deepseek_v4 --reasoning-parser deepseek_v4 \\"
    cluster = " --distributed-executor-backend ray" if records.nodes > 1 else ""
    yield f"  --tensor-parallel-size {records.cards}{cluster}"
    yield "```"
