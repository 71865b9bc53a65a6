"""Several losses on one trunk, balanced in a plain loop: what each weighs, and how long its gradient is then.

python examples/balanced_losses.py [RULE]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from vmmr.balancing import BALANCERS, balanced_backward

LEVELS = {"make": 4, "model": 16, "year": 3}


def main(rule: str = "avgnorm", batches: int = 3) -> list[dict[str, float]]:
    """Train on random images; returns the weights of each batch."""
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AvgPool2d(7),
        nn.Flatten(),
    )
    heads = nn.ModuleDict({level: nn.Linear(32, count) for level, count in LEVELS.items()})
    last_shared = trunk[2].weight
    balancer = BALANCERS[rule](tuple(LEVELS))
    # A rule that learns its weights has parameters of its own.
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters(), *balancer.parameters()], lr=0.01)
    history = []
    for batch in range(batches):
        image = torch.rand(8, 3, 32, 32) * 2 - 1
        features = trunk(image)
        losses: dict[str, Tensor] = {}
        for level, count in LEVELS.items():
            if level == "year" and batch == 1:  # a batch without years trains what it has
                continue
            losses[level] = nn.functional.cross_entropy(heads[level](features), torch.randint(count, (8,)))
        balance = balanced_backward(losses, balancer, [last_shared], heads=list(heads.parameters()), measure=True)
        optimizer.step()
        optimizer.zero_grad()
        history.append({level: weight.item() for level, weight in balance["weights"].items()})
        for level, weight in history[-1].items():
            length = balance["norms"][level].item()
            print(f"batch {batch}: {level:5} weight {weight:.2f}, gradient {length:.4f} -> {weight * length:.4f}")
    balancer.end_epoch()
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
