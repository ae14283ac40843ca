"""Values of options: parts of a baseline, dialects of endpoints."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["logits", "benchmarks", "behaviour"]  # of a baseline
PARTS: tuple[Part, ...] = get_args(Part)

# How an endpoint is told whether to think: DeepSeek's field `thinking`, or vLLM's and SGLang's chat_template_kwargs.
Dialect = Literal["deepseek", "template"]
