"""Teacher-forced log-probabilities in a file, so that two machines can be compared without both at hand.

The file is safetensors. Sequence n has `n.tokens` int64 [T], `n.logprobs` float32 [T - 1] (of each next token),
`n.top_ids` int32 [T, K] and `n.top_logprobs` float32 [T, K] (the most likely tokens after each position, best first).
The metadata say how it was computed. Natural logarithms, temperature 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flagrelease.engine.agreement import require_same_options
from flagrelease.engine.generate.jsonl import read_lines
from flagrelease.engine.loaded import AnyModel
from flagrelease.errors import UsageError
from flagrelease.model.config import FamilyConfig


def read_tokens(path: Path) -> list[list[int]]:
    """A JSONL file with a list of token ids a line.

    Raises:
        UsageError: the file is not that; names the line.
    """
    sequences = []
    for number, document in read_lines(path):
        if not isinstance(document, list) or not document or not all(type(token) is int for token in document):
            raise UsageError(f"{path}: line {number}: a list of token ids is expected")
        sequences.append(document)
    if not sequences:
        raise UsageError(f"{path}: no sequence in it")
    return sequences


def check_request(config: FamilyConfig, sequences: Sequence[Sequence[int]], top: int) -> None:
    """Refuse what this model cannot compute, before it is loaded.

    Raises:
        UsageError: `top` is more than the vocabulary, a token outside it, or a sequence longer than the context.
    """
    if top > config.vocab_size:
        raise UsageError(f"top {top}: the vocabulary has {config.vocab_size}")
    for place, tokens in enumerate(sequences):
        if len(tokens) > config.max_position_embeddings:
            raise UsageError(
                f"sequence {place}: {len(tokens)} tokens; the model's context is {config.max_position_embeddings}"
            )
        if (wrong := next((token for token in tokens if not 0 <= token < config.vocab_size), None)) is not None:
            raise UsageError(f"sequence {place}: token {wrong} is outside the vocabulary of {config.vocab_size}")


def write_logits(model: AnyModel, sequences: Sequence[Sequence[int]], out: Path, top: int, *, by_decode: bool) -> None:
    """Run every sequence and write the file (the leader does). `by_decode`: token by token, through the cache.

    Raises:
        UsageError: the ranks were asked for different things, `top` is more than the vocabulary, or a sequence is
            longer than the model's context.
    """
    asked = hashlib.sha256(repr([list(tokens) for tokens in sequences]).encode()).hexdigest()
    replay = "decode" if by_decode else "prefill"
    require_same_options(model.groups.control, {"--tokens": asked, "--top": top, "--replay": replay})
    check_request(model.config, sequences, top)
    tensors: dict[str, Tensor] = {}
    for n, tokens in enumerate(sequences):
        parts = [_reduce(logits, tokens, start, top) for start, logits in _logits(model, tokens, by_decode=by_decode)]
        tensors[f"{n}.tokens"] = torch.tensor(tokens, dtype=torch.int64)
        for name in ("logprobs", "top_ids", "top_logprobs"):
            tensors[f"{n}.{name}"] = torch.cat([part[name] for part in parts])
    if model.groups.is_leader:
        partial = out.with_name(out.name + ".partial")  # never half a file under the final name
        save_file(tensors, partial, {"format": "pt"} | describe(model, replay))
        partial.replace(out)


def _logits(model: AnyModel, tokens: Sequence[int], *, by_decode: bool) -> Iterator[tuple[int, Tensor]]:
    """(first position, logits [S, V] after it and the following ones)."""
    cache = model.new_cache(rows=1, context=len(tokens))
    if by_decode:
        for position, token in enumerate(tokens):
            yield position, model.decode(cache, [token])
        return
    position = 0
    for logits in model.prefill_each(cache, 0, tokens):
        yield position, logits
        position += len(logits)


def _reduce(logits: Tensor, tokens: Sequence[int], start: int, top: int) -> dict[str, Tensor]:
    logp = logits.float().log_softmax(-1)
    following = torch.tensor(tokens[start + 1 : start + 1 + len(logp)], dtype=torch.int64, device=logp.device)
    best = logp.topk(top, dim=-1)
    return {
        "logprobs": logp[: len(following)].gather(-1, following[:, None])[:, 0].cpu(),
        "top_ids": best.indices.int().cpu(),
        "top_logprobs": best.values.cpu(),
    }


def describe(model: AnyModel, replay: str) -> dict[str, str]:
    """How the log-probabilities were computed: the metadata of the file."""
    return {
        "numerics": model.numerics.name,
        "dtype": str(model.numerics.dtype).removeprefix("torch."),
        "operators": model.ops.name,
        "device": model.device.type,
        "ranks": str(model.groups.mp),
        "replay": replay,
    }
