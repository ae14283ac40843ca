"""Train DSpark's draft stages for the tiny model, whose weights stay as they are, and write both as a checkpoint.

    python examples/tiny/dspark_train.py --out OUT [--steps 900] [--seed 0]

The target reads training conversations as train.py makes them; blocks are drafted at random tokens of the replies and
learn the target's distributions. Losses as in DeepSeek's DeepSpec: cross-entropy, total variation, and for the
confidence the acceptance of speculative sampling, 1 - TV(target, draft); a block's later places weigh less. Every
forward pass rounds weights and activations as the native run does (see train.py).
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import dspark_checkpoint
import dspark_evaluate
import model
import torch
import train
from dspark import DraftConfig, DraftStages, read_target
from optimizer import make_optimizers
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

CHECKPOINT = Path(__file__).parent / "flagrelease-tiny-v4-dspark"
COMPANIONS = (*train.COMPANIONS, "inference/config.json")
WARM_UP_STEPS = 3  # a stream's first steps allocate, which a captured step must not


@dataclass(frozen=True)
class Recipe(train.Recipe):
    """Everything that decides the outcome; what train.py has for the target alone is not read."""

    steps: int = 900
    workers: int = 8
    anchors: int = 24  # blocks a conversation
    cross_entropy: float = 1.0  # weights of the losses
    total_variation: float = 1.0
    confidence: float = 0.3
    fading: float = 4.0  # a place i of a block weighs exp(-i / fading)


class Drafting(train.Conversations):
    """Endless (ids [S + 1], kinds [S + 1], anchors [A]): conversations, and where their blocks begin."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks begin at random tokens of replies that have another one behind them."""
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.recipe.seed}-{worker.id if worker else 0}-anchors")
        for ids, kinds in super().__iter__():
            replied = kinds != train.PROMPT
            places = (replied[:-1] & replied[1:]).nonzero().flatten().tolist()
            yield ids, kinds, torch.tensor(rng.choices(places, k=self.recipe.anchors))


class Losses(dict[str, Tensor]):
    """The losses by name, and what is only shown: `accepted` [G], the acceptance at each place of a block."""


def losses_of(
    target: model.TinyV4, stages: DraftStages, recipe: Recipe, ids: Tensor, kinds: Tensor, anchors: Tensor,
    rotations: model.Rotations, see_all: Tensor,
) -> Losses:  # fmt: skip
    """Read with the target, draft at the anchors, and compare; ids and kinds [B, S + 1], anchors [B, A]."""
    positions = ids.shape[1] - 1
    size = stages.draft_config.dspark_block_size
    with torch.no_grad():
        read = model.Rotations(*(part[:positions] for part in rotations))
        layers = stages.draft_config.dspark_target_layer_ids
        features, logits = read_target(target, ids[:, :-1], layers, read, see_all)
        place = anchors.unsqueeze(-1) + torch.arange(size, device=ids.device)
        inside = place < positions
        place = place.clamp(max=positions - 1)  # of the drafts' tokens before; what lies outside weighs nothing
        rows = torch.arange(len(ids), device=ids.device)[:, None, None]
        wanted = logits[rows, place].softmax(-1)
        replied = inside & (kinds[rows, place + 1] != train.PROMPT)
        weights = replied.cumprod(-1) * torch.exp(-torch.arange(size, device=ids.device) / recipe.fading)
    before = ids[rows, place]
    blocks = stages(target, features, anchors, before[..., 0], rotations.sliding)
    embedded = stages.markov.embed(before)
    drafted = (blocks.base + stages.markov.bias(embedded)).log_softmax(-1)
    variation = (drafted.exp() - wanted).abs().sum(-1) / 2
    accepted = 1 - variation.detach()
    confidence = stages.confidence(blocks.x, embedded)

    def mean(each: Tensor) -> Tensor:
        return (each * weights).sum() / weights.sum()

    return Losses(
        cross_entropy=mean(-(wanted * drafted).sum(-1)),
        total_variation=mean(variation),
        confidence=mean(functional.binary_cross_entropy_with_logits(confidence, accepted, reduction="none")),
        accepted=(accepted * (weights > 0)).sum((0, 1)) / (weights > 0).sum((0, 1)),
    )


def total_of(losses: Losses, recipe: Recipe) -> Tensor:
    """The weighted sum that is minimised."""
    return sum(getattr(recipe, name) * losses[name] for name in ("cross_entropy", "total_variation", "confidence"))


def captured(step: Callable[..., Losses], inputs: list[Tensor]) -> Callable[..., Losses]:
    """The same step as one CUDA graph: its thousands of small kernels cost more to launch than to run.

    The graph keeps its inputs, losses and gradients at fixed places.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_STEPS):
            step(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step(*inputs)

    def replay(*given: Tensor) -> Losses:
        for place, tensor in zip(inputs, given, strict=True):
            place.copy_(tensor)
        graph.replay()
        return losses

    return replay


def save(stages: DraftStages, folder: Path, source: Path) -> dict[str, object]:
    """Write a complete checkpoint folder, read it back and return its held-out acceptance in native numerics."""
    (folder / "inference").mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (CHECKPOINT / name).exists() and (CHECKPOINT / name).resolve() != (folder / name).resolve():
            shutil.copyfile(CHECKPOINT / name, folder / name)
    dspark_checkpoint.save(stages, source, folder)
    device = next(stages.parameters()).device
    target, stored = (part.to(device) for part in dspark_checkpoint.load(folder, model.NATIVE))
    return dspark_evaluate.summary(target, stored, folder, batch_size=6 if device.type == "cpu" else 66)


def train_stages(recipe: Recipe, out: Path, source: Path, device: str, log_every: int) -> None:
    """The training loop; writes `out` and prints one JSON line per `log_every` steps."""
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    config, draft = (part.read(CHECKPOINT / "config.json") for part in (model.Config, DraftConfig))
    target = dspark_checkpoint.load_target(source, config, model.NATIVE).to(device)
    stages = DraftStages(config, draft, model.NATIVE).to(device)
    masters = train.MasterWeights(stages)
    optimizers = make_optimizers(masters.masters, recipe.matrix_rate, recipe.other_rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: train.rate_at(step, recipe)) for o in optimizers]
    rotations = model.Rotations.of(config, recipe.positions + draft.dspark_block_size, torch.device(device))
    see_all = torch.tensor(False, device=device)

    def step(ids: Tensor, kinds: Tensor, anchors: Tensor) -> Losses:
        for weight in stages.parameters():
            weight.grad = None
        losses = losses_of(target, stages, recipe, ids, kinds, anchors, rotations, see_all)
        total_of(losses, recipe).backward()
        return Losses({name: loss.detach() for name, loss in losses.items()})

    loader = DataLoader(
        Drafting(recipe), recipe.batch, num_workers=recipe.workers
    )  # a pinning thread would break the capture
    run: Callable[..., Losses] | None = None
    started = time.monotonic()
    for number, batch in enumerate(loader):
        if number == recipe.steps:
            break
        masters.round_into_network()
        batch = [part.to(device) for part in batch]
        if run is None:
            run = captured(step, batch) if device == "cuda" else step
        losses = run(*batch)
        for name, weight in masters.network.items():
            masters.masters[name].grad = weight.grad
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        train.balance_experts(stages, recipe.balance_rate)
        if (number + 1) % log_every == 0 or number == recipe.steps - 1:
            record: dict[str, object] = {"step": number, "seconds": round(time.monotonic() - started, 1)}
            record |= {name: round(losses[name].item(), 4) for name in losses if name != "accepted"}
            record["accepted"] = [round(share, 3) for share in losses["accepted"].tolist()]
            if number == recipe.steps - 1:
                masters.round_into_network()
                record["held_out"] = save(stages, out, source)
            print(json.dumps(record), flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", type=Path, default=train.CHECKPOINT, help="checkpoint folder of the target")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--log-every", type=int, default=50)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{name: arguments.pop(name) for name in asdict(Recipe())})
    print(json.dumps(asdict(recipe)), flush=True)
    train_stages(recipe, **arguments)


if __name__ == "__main__":
    main()
