"""Train the tiny DeepSeek-V4 on one GPU and write it as a checkpoint.

    python examples/tiny/train.py --out OUT [--steps 3350] [--seed 0]

Quantisation-aware from the first step: every forward pass rounds weights and activations as the native run does, with
straight-through gradients. The indexers learn from attention's own mass over the compressed windows, which ratio-4
layers see in full for the first part of training and through the indexer's choice afterwards. MTP is trained along.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import checkpoint
import evaluate
import model
import quantization
import tasks
import tokenizer
import torch
from optimizer import make_optimizers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

CHECKPOINT = Path(__file__).parent / "flagrelease-tiny-v4"
COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome."""

    steps: int = 3350
    seed: int = 0
    workers: int = 14  # processes that draw conversations, each its own stream
    batch: int = 64
    positions: int = 256
    rows_from: int = 4
    rows_to: int = 36
    matrix_rate: float = 0.015  # Muon
    other_rate: float = 0.003  # AdamW
    warmup: int = 200  # steps
    decay: float = 0.35  # of the steps, linear to zero
    sparse_from: float = 0.5  # of the steps: from here on the indexer chooses
    walk_weight: float = 0.5  # loss of a walk's token against another answer's; prompts have none
    mtp_weight: float = 0.2
    index_weight: float = 0.1
    balance_rate: float = 0.001  # step of the gates' biases


PROMPT = len(tasks.Form)  # the kind of a token that is not learned; an answer's token has its turn's form


class Conversations(IterableDataset):
    """Endless (ids [S + 1], kinds [S + 1]) of training conversations, one stream per worker."""

    def __init__(self, recipe: Recipe) -> None:
        """Worker w of n draws from a generator seeded with "seed-w"."""
        self.recipe = recipe

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw conversations until they fill the sequence."""
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.recipe.seed}-{worker.id if worker else 0}")
        encoder = tokenizer.load(CHECKPOINT)
        held_out = tasks.held_out_ledgers()
        length = self.recipe.positions + 1
        while True:
            ids: list[int] = []
            kinds: list[int] = []
            rows = int(self.recipe.rows_from * (self.recipe.rows_to / self.recipe.rows_from) ** rng.random())
            for turn in tasks.conversation(rng, rows, held_out):
                prompt = tokenizer.encode(encoder, tokenizer.user_turn(turn.prompt, first=not ids))
                answer = tokenizer.encode(encoder, turn.answer + tokenizer.EOS)
                ids += prompt + answer
                kinds += [PROMPT] * len(prompt) + [turn.form] * len(answer)
                if len(ids) >= length:
                    break
            yield torch.tensor(ids[:length]), torch.tensor(kinds[:length])


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over positions [B, S] with weights [B, S]."""
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def losses_of(output: model.Output, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The losses by name; ids and weights are [B, S + 1]."""
    return {
        "next": weighted_cross_entropy(output.logits, ids[:, 1:], weights[:, 1:]),
        "mtp": weighted_cross_entropy(output.mtp_logits[:, :-1], ids[:, 2:], weights[:, 2:]),
        "index": output.index_loss,
    }


def error_rates(output: model.Output, ids: Tensor, kinds: Tensor) -> dict[str, float]:
    """Share of wrong tokens of the answers of each form."""
    wrong = output.logits.argmax(-1) != ids[:, 1:]
    return {form.name.lower(): round(wrong[kinds[:, 1:] == form].float().mean().item(), 4) for form in tasks.Form}


class MasterWeights:
    """Float32 weights behind the network's rounded ones: the straight-through estimator.

    The network holds what the checkpoint will store; its gradients move the masters, which are rounded into it again.
    """

    def __init__(self, network: model.TinyV4) -> None:
        """The network's present weights become the masters."""
        formats = checkpoint.stored_formats(network)
        self.network = dict(network.named_parameters())
        self.masters = {name: nn.Parameter(weight.detach().clone()) for name, weight in self.network.items()}
        self.names = {
            stored: [n for n in self.network if formats[n] == stored] for stored in ("fp4", "fp8", "bf16", "f32")
        }

    def take_gradients(self) -> None:
        """Move the network's gradients to the masters."""
        for name, weight in self.network.items():
            self.masters[name].grad, weight.grad = weight.grad, None

    @torch.no_grad()
    def round_into_network(self) -> None:
        """Give the network the masters as a checkpoint would store them."""
        for stored, names in self.names.items():
            weights = [self.masters[name].detach() for name in names]
            if stored == "fp4":
                weights = quantization.round_fp4_weights(weights)
            elif stored == "fp8":
                weights = quantization.round_fp8_weights(weights)
            elif stored == "bf16":
                weights = [weight.bfloat16() for weight in weights]
            torch._foreach_copy_([self.network[name] for name in names], weights)


@torch.no_grad()
def balance_experts(network: model.TinyV4, rate: float) -> None:
    """noaux_tc: raise the bias of experts that were chosen less than the mean, lower the others."""
    for module in network.modules():
        if isinstance(module, model.Gate) and not module.hashed:
            module.bias += rate * torch.sign(module.load.mean() - module.load)
            module.load.zero_()


def rate_at(step: int, recipe: Recipe) -> float:
    """Trapezoid: linear warm-up, constant, linear decay to zero."""
    return min(
        1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / (recipe.decay * recipe.steps)
    )  # at the last step the rate is not yet zero


def save(network: model.TinyV4, folder: Path) -> dict[str, float]:
    """Write a complete checkpoint folder, read it back and return its held-out accuracy in native numerics."""
    (folder / "inference").mkdir(parents=True, exist_ok=True)
    for name in (*COMPANIONS, "inference/config.json"):
        shutil.copyfile(CHECKPOINT / name, folder / name)
    checkpoint.save(network, folder)
    stored = checkpoint.load(folder, model.NATIVE).to(network.head.weight.device)
    return evaluate.summary(stored, folder, batch_size=66)


def starting_model(start_from: Path | None) -> model.TinyV4:
    """Random weights, or those of a checkpoint folder."""
    if start_from is None:
        return model.TinyV4(model.Config.read(CHECKPOINT / "config.json"), model.NATIVE)
    return checkpoint.load(start_from, model.NATIVE).train().requires_grad_(True)


def compile_for_gpu(network: model.TinyV4) -> None:
    """Compile every block; Sinkhorn's hundreds of small operations once for all of them."""
    compiled = torch.compile(model.sinkhorn)
    model.sinkhorn = torch.compiler.disable(lambda *arguments: compiled(*arguments), recursive=False)
    for block in [*network.layers, *network.mtp]:
        block.compile()


def train(
    recipe: Recipe,
    out: Path,
    start_from: Path | None,
    device: str,
    log_every: int,
    save_every: int,
) -> None:
    """The training loop; writes `out` and prints one JSON line per `log_every` steps."""
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    network = starting_model(start_from).to(device)
    masters = MasterWeights(network)
    optimizers = make_optimizers(masters.masters, recipe.matrix_rate, recipe.other_rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_at(step, recipe)) for o in optimizers]
    if device == "cuda":
        compile_for_gpu(network)
    weight_of = torch.ones(PROMPT + 1, device=device)
    weight_of[tasks.Form.WALK], weight_of[PROMPT] = recipe.walk_weight, 0.0
    loader = DataLoader(Conversations(recipe), recipe.batch, num_workers=recipe.workers, pin_memory=device == "cuda")
    started = time.monotonic()
    for step, (ids, kinds) in enumerate(loader):
        if step == recipe.steps:
            break
        ids, kinds = ids.to(device, non_blocking=True), kinds.to(device, non_blocking=True)
        masters.round_into_network()
        output = network(ids[:, :-1], see_all_windows=step < recipe.sparse_from * recipe.steps)
        losses = losses_of(output, ids, weight_of[kinds])
        total = losses["next"] + recipe.mtp_weight * losses["mtp"] + recipe.index_weight * losses["index"]
        total.backward()
        masters.take_gradients()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        balance_experts(network, recipe.balance_rate)
        if (step + 1) % log_every == 0 or step == recipe.steps - 1:
            record = {"step": step, "seconds": round(time.monotonic() - started, 1)}
            record |= {name: round(loss.item(), 4) for name, loss in losses.items()}
            record |= error_rates(output, ids, kinds)
            if (step + 1) % save_every == 0 or step == recipe.steps - 1:
                record |= save(network, out)
            print(json.dumps(record), flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, help="a checkpoint folder to go on from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=5000)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{name: arguments.pop(name) for name in asdict(Recipe())})
    print(json.dumps(asdict(recipe)), flush=True)
    train(recipe, **arguments)


if __name__ == "__main__":
    main()
