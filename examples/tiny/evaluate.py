"""Accuracy of a tiny checkpoint on the held-out task files.

    python examples/tiny/evaluate.py examples/tiny/flagrelease-tiny-v4 [--numerics native|bf16] [--swap-nibbles]

An item counts as right if greedy decoding gives exactly the reference answer and then the end token. One forward pass
over prompt and answer decides that: greedy decoding yields the answer iff the argmax at every answer position is the
answer's next token. `--swap-nibbles` plants the defect that no weight statistic sees: FP4 pairs in the wrong order.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import checkpoint
import model
import tasks
import tokenizer
import torch
from torch import Tensor

NUMERICS = {"native": model.NATIVE, "bf16": model.BF16}
FILES = (tasks.MULTIPLE_CHOICE, tasks.INTEGERS_1, tasks.INTEGERS_2)


@dataclass(frozen=True, slots=True)
class Item:
    """Token ids of prompt and answer with its end token; the answer starts at `start`."""

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class Score:
    """Of one item: is the greedy answer exact, and how many of MTP's `drafted` answer tokens does the model accept."""

    right: bool
    accepted: int
    drafted: int


def read_items(path: Path, folder: Path) -> list[Item]:
    """The items of a task file, encoded with the checkpoint's tokenizer."""
    encoder = tokenizer.load(folder)
    items = []
    for prompt, answer in tasks.read_items(path):
        head = tokenizer.encode(encoder, tokenizer.user_turn(prompt))
        items.append(Item(head + tokenizer.encode(encoder, answer + tokenizer.EOS), len(head)))
    return items


def batches(items: list[Item], size: int) -> Iterator[tuple[list[Item], Tensor]]:
    """Items with their ids [B, S], padded on the right with zeros: attention is causal, so padding changes nothing."""
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        longest = max(len(item.ids) for item in batch)
        yield batch, torch.tensor([item.ids + [0] * (longest - len(item.ids)) for item in batch])


@torch.no_grad()
def evaluate(network: model.TinyV4, items: list[Item], batch_size: int) -> list[Score]:
    """Score every item. A draft of MTP is accepted where its argmax is the model's own one step later."""
    device = network.head.weight.device
    scores = []
    for batch, ids in batches(items, batch_size):
        output = network(ids.to(device))
        chosen, drafted = output.logits.argmax(-1).cpu(), output.mtp_logits.argmax(-1).cpu()
        for row, item in enumerate(batch):
            answer = torch.tensor(item.ids[item.start :])
            predicted = chosen[row, item.start - 1 : len(item.ids) - 1]
            drafts = drafted[row, item.start - 2 : len(item.ids) - 2]
            scores.append(Score(bool((predicted == answer).all()), int((drafts == predicted).sum()), len(answer)))
    return scores


def swap_nibbles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint with the two FP4 values of every byte exchanged."""
    swapped = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            packed = tensor.view(torch.uint8)
            swapped[name] = ((packed << 4) | (packed >> 4)).view(torch.int8)
    return swapped


def summary(network: model.TinyV4, folder: Path, batch_size: int = 6) -> dict[str, float]:
    """Accuracy of each task file, and MTP's acceptance over all their answers."""
    result = {}
    accepted = drafted = 0
    for file in FILES:
        scores = evaluate(network, read_items(tasks.FOLDER / file, folder), batch_size)
        result[file.removesuffix(".jsonl")] = round(sum(score.right for score in scores) / len(scores), 4)
        accepted += sum(score.accepted for score in scores)
        drafted += sum(score.drafted for score in scores)
    return result | {"mtp_acceptance": round(accepted / drafted, 4)}


def main() -> None:
    """Print the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--numerics", choices=NUMERICS, default="native")
    parser.add_argument("--swap-nibbles", action="store_true")
    arguments = parser.parse_args()
    tensors = checkpoint.read_tensors(arguments.checkpoint)
    if arguments.swap_nibbles:
        tensors = swap_nibbles(tensors)
    config = model.Config.read(arguments.checkpoint / "config.json")
    network = checkpoint.model_of(tensors, config, NUMERICS[arguments.numerics])
    print(json.dumps(summary(network, arguments.checkpoint), indent=2))


if __name__ == "__main__":
    main()
