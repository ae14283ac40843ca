"""Muon for the matrices inside the blocks, AdamW for everything else."""

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037))
NEWTON_SCHULZ += ((2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))

OTHER_MATRICES = (".hc_", ".ape", "gate.weight", ".markov_head.", ".confidence_head.")


def orthogonalize(gradients: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of [n, o, i], approximately, by five Newton-Schulz steps in BF16."""
    x = gradients.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalised updates (Jordan et al., 2024); matrices of one shape are updated together."""

    def __init__(
        self, parameters: list[nn.Parameter], rate: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        """`parameters` are [.., o, i]; `decay` is relative to the rate."""
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape[-2:], []).append(parameter)
        groups = [{"params": group} for group in by_shape.values()]
        super().__init__(groups, {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix."""
        for group in self.param_groups:
            shape = group["params"][0].shape[-2:]
            gradients = torch.cat([p.grad.reshape(-1, *shape) for p in group["params"]])
            state = self.state[group["params"][0]]
            velocity = state.setdefault("velocity", torch.zeros_like(gradients))
            velocity.lerp_(gradients, 1 - group["momentum"])
            update = orthogonalize(gradients.lerp(velocity, group["momentum"]))
            update = update.float() * max(1.0, shape[0] / shape[1]) ** 0.5
            sizes = [p.numel() // (shape[0] * shape[1]) for p in group["params"]]
            for parameter, part in zip(group["params"], update.split(sizes), strict=True):
                parameter.mul_(1 - group["lr"] * group["decay"])
                parameter.sub_(part.reshape(parameter.shape), alpha=group["lr"])


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Linear weights inside blocks; not the gates, hyper-connections, position biases or the heads of drafts."""
    inside = name.startswith(("layers.", "mtp."))
    return inside and parameter.dim() >= 2 and not any(part in name for part in OTHER_MATRICES)


def make_optimizers(
    weights: dict[str, nn.Parameter], matrix_rate: float, other_rate: float
) -> list[torch.optim.Optimizer]:
    """Both optimizers over weights by name; their rates are the peaks of a schedule."""
    matrices = [weight for name, weight in weights.items() if is_block_matrix(name, weight)]
    others = [weight for name, weight in weights.items() if not is_block_matrix(name, weight)]
    return [Muon(matrices, matrix_rate), torch.optim.AdamW(others, other_rate, betas=(0.9, 0.98), weight_decay=0.0)]
