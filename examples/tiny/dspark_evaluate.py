"""How many of DSpark's drafts the tiny target accepts on the held-out tasks, greedily.

    python examples/tiny/dspark_evaluate.py examples/tiny/flagrelease-tiny-v4-dspark [--numerics native|bf16]

The target answers every held-out question right (evaluate.py), so its greedy reply is the reference. The reply's first
token is the prompt's doing; from there a block is drafted, the drafts up to the first wrong one are accepted, the
target adds a token of its own, and the next block starts at that one, until the reply's end token.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import dspark_checkpoint
import evaluate
import model
import tasks
import torch
from dspark import DraftStages, read_target
from torch.nn import functional

NUMERICS = {"native": model.NATIVE, "bf16": model.BF16}
FILES = (tasks.MULTIPLE_CHOICE, tasks.INTEGERS_1, tasks.INTEGERS_2)


@dataclass
class Acceptance:
    """Counts over verified blocks, by place in the block.

    Attributes:
        drafted: how many drafts stood before the reply's end.
        accepted: how many of them were accepted, which takes that all before were.
        blocks: verified.
        confidence: sum of the confidences of the drafts that were reached: all before them were accepted.
        reached: their number.
    """

    drafted: list[int]
    accepted: list[int]
    confidence: list[float]
    reached: list[int]
    blocks: int = 0

    @classmethod
    def none(cls, size: int) -> "Acceptance":
        """No block of `size` yet."""
        return cls([0] * size, [0] * size, [0.0] * size, [0] * size)

    def add(self, drafts: list[int], confidences: list[float], reply: list[int]) -> int:
        """Count a block with whose anchor `reply` goes on; returns how many drafts were accepted."""
        self.blocks += 1
        accepted = 0
        for place, (draft, token) in enumerate(zip(drafts, reply, strict=False)):
            self.drafted[place] += 1
            if accepted < place:
                continue
            self.reached[place] += 1
            self.confidence[place] += confidences[place]
            if draft == token:
                self.accepted[place] += 1
                accepted += 1
        return accepted

    def summary(self) -> dict[str, object]:
        """Counts, tokens a verified block (the target's own is one), the share that was right, mean confidence."""
        reached = [max(count, 1) for count in self.reached]
        return {
            "blocks": self.blocks,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "tokens_a_block": round(1 + sum(self.accepted) / max(self.blocks, 1), 3),
            "right": [round(a / n, 3) for a, n in zip(self.accepted, reached, strict=True)],
            "confidence": [round(c / n, 3) for c, n in zip(self.confidence, reached, strict=True)],
        }


def walk(item: evaluate.Item, drafts: list[list[int]], confidences: list[list[float]], counts: Acceptance) -> None:
    """Go through one reply as an engine does; drafts [A][G] of blocks that start at each token of the reply."""
    reply = item.ids[item.start :]
    place = 0
    while place < len(reply) - 1:
        place += 1 + counts.add(drafts[place], confidences[place], reply[place + 1 :])


@torch.no_grad()
def evaluate_drafts(
    target: model.TinyV4, stages: DraftStages, items: list[evaluate.Item], batch_size: int
) -> Acceptance:
    """Draft at every token of every reply, and count along the way that an engine takes."""
    device, window = target.head.weight.device, target.config.sliding_window
    size, layers = stages.draft_config.dspark_block_size, stages.draft_config.dspark_target_layer_ids
    see_all = torch.tensor(False, device=device)
    counts = Acceptance.none(size)
    for batch, ids in evaluate.batches(items, batch_size):
        ids = functional.pad(ids, (0, -ids.shape[1] % window)).to(device)
        rotations = model.Rotations.of(target.config, ids.shape[1] + size, device)
        read = model.Rotations(*(part[: ids.shape[1]] for part in rotations))
        features, _ = read_target(target, ids, layers, read, see_all)
        longest = max(len(item.ids) - item.start for item in batch)
        starts = torch.tensor([item.start for item in batch], device=device)
        anchors = (starts.unsqueeze(-1) + torch.arange(longest, device=device)).clamp(max=ids.shape[1] - 1)
        tokens = ids.gather(1, anchors)
        drafts, confidences = stages.draft_greedily(
            stages(target, features, anchors, tokens, rotations.sliding), tokens
        )
        for item, drafted, confidence in zip(batch, drafts.tolist(), confidences.tolist(), strict=True):
            walk(item, drafted, confidence, counts)
    return counts


def summary(target: model.TinyV4, stages: DraftStages, folder: Path, batch_size: int = 6) -> dict[str, object]:
    """Acceptance over the replies of all task files."""
    items = [item for file in FILES for item in evaluate.read_items(tasks.FOLDER / file, folder)]
    return evaluate_drafts(target, stages, items, batch_size).summary()


def main() -> None:
    """Print the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--numerics", choices=NUMERICS, default="native")
    arguments = parser.parse_args()
    target, stages = dspark_checkpoint.load(arguments.checkpoint, NUMERICS[arguments.numerics])
    print(json.dumps(summary(target, stages, arguments.checkpoint), indent=2))


if __name__ == "__main__":
    main()
