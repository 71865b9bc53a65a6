"""Run by test_balanced_processes.py: the weights that each rule gives to three batches, in one of some processes.

python balanced_processes.py RANK WORLD FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from vmmr.balancing import BALANCERS, balanced_backward

NAMES = ("a", "b", "c")
RULES = ("avgnorm", "db_mtl", "dwa", "gradnorm", "imtl_g", "pcgrad", "random", "uncertainty", "upgrad")


def _mean(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor / distributed.get_world_size()


def weights_of(name: str, rank: int, world: int, *, at_features: bool = False) -> list[dict[str, float]]:
    """Weights of three batches, each process with its share; in the last one only the first process has all losses."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    heads = nn.ModuleDict({n: nn.Linear(5, 3) for n in NAMES})
    images, labels = torch.randn(3, 8, 4), torch.randint(3, (3, 3, 8))
    rule = BALANCERS[name](NAMES)
    torch.manual_seed(rank)  # whatever is drawn elsewhere
    found = []
    for batch in range(3):
        features = trunk(images[batch][rank::world])
        names = NAMES if batch < 2 or rank == 0 else NAMES[:2]
        losses = {
            n: nn.functional.cross_entropy(heads[n](features), labels[batch, i][rank::world])
            for i, n in enumerate(NAMES)
            if n in names
        }
        shared = [features] if at_features else [trunk[2].weight]
        balance = balanced_backward(losses, rule, shared, reduce=_mean if world > 1 else None)
        found.append({n: w.item() for n, w in balance["weights"].items()})
        if batch == 0:
            rule.end_epoch()
    return found


def main(rank: int, world: int, folder: Path) -> None:
    """Write FOLDER/RANK.json."""
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    found = {name: weights_of(name, rank, world) for name in RULES}
    found["features"] = weights_of("avgnorm", rank, world, at_features=True)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
