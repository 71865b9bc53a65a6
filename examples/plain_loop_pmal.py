"""PMAL in a loop of your own: four sharpness-aware steps a batch, without vmmr's trainer.

    python examples/plain_loop_pmal.py

The parts are functions of tensors: `restore_losses` and `clean_losses` give named scalars, `sharpness_aware` runs a
closure twice. Twelve rendered classes at 64 px stand for the data; six batches teach nothing, they show the order.
"""

from __future__ import annotations

import torch

from vmmr.data.rendered import World, draw
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.models.backbone import DEPTHS
from vmmr.noise import TRAINING_NOISE
from vmmr.training.progressive import clean_losses, restore_losses
from vmmr.training.sam import sharpness_aware

BATCH = 12


def main(batches: int = 6) -> list[dict[str, float]]:
    """Train on `batches` batches; returns the named losses of each."""
    torch.manual_seed(0)
    world = World(seed=0, makes=3, models_per_make=4, years=1)
    drawn = draw(world, 2 * BATCH, size=64)
    images = torch.from_numpy(drawn["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1  # [N, 3, 64, 64] in [-1, 1]
    labels = torch.from_numpy(drawn["label"])

    classes = int(labels.max()) + 1
    network = ProgressiveNetwork(Backbone("mobilenetv3_small_050", classes), classes, form="lean").train()
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    noise = TRAINING_NOISE["published"]

    def step(losses: dict[str, torch.Tensor]) -> dict[str, float]:
        torch.stack(list(losses.values())).sum().backward()
        return {name: term.item() for name, term in losses.items()}

    history = []
    for number in range(batches):
        rows = torch.randperm(len(images))[:BATCH]
        image, label = images[rows], labels[rows]
        seen: dict[str, float] = {}
        for depth in DEPTHS:
            # One draw of noise serves both passes of a sharpness-aware step.
            batch = {**noise(image), "label": label}

            def restore(depth: int = depth, batch: dict[str, torch.Tensor] = batch) -> dict[str, float]:
                return step(restore_losses(network, batch, depth, stop=True))

            seen |= sharpness_aware(restore, parameters, rho=0.05, networks=(network,))
            optimizer.step()

        def classify(image: torch.Tensor = image, label: torch.Tensor = label) -> dict[str, float]:
            return step(clean_losses(network(image), label))

        seen |= sharpness_aware(classify, parameters, rho=0.05, networks=(network,))
        optimizer.step()
        history.append(seen)
        print(f"batch {number}: " + " ".join(f"{name} {value:.2f}" for name, value in seen.items()))
    return history


if __name__ == "__main__":
    main()
