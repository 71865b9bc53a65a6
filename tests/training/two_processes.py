"""Run by test_processes.py under torchrun: fits two methods and writes what each process ends with.

python -m torch.distributed.run --nproc_per_node 2 two_processes.py PICTURES OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.levels import HierarchySpec
from vmmr.models import Backbone, HierarchicNetwork, ProgressiveNetwork
from vmmr.training.loop import fit
from vmmr.training.multitask import Multitask
from vmmr.training.plain import Plain
from vmmr.training.progressive import Progressive
from vmmr.training.samples import open_samples

BASE: dict[str, Any] = {
    "size": 32,
    "crop": 32 / 36,
    "batch_size": 8,
    "epochs": 2,
    "near_duplicates": False,
    "channels_last": False,
    "optimizer": "sgd",
    "lr": 0.05,
    "trunk_lr": 0.02,
}
# Without BatchNorm and noise, two halves of a batch are the batch.
SETTINGS = {
    "plain": TrainConfig(backbone="test_convnext", sam_rho=0.05, **BASE),
    # A table where few images tell their model, so that a process can lack a level.
    "levels": TrainConfig(
        backbone="test_convnext",
        levels=["make", "class"],
        balancer="uncertainty",
        measure_every=1,
        sam_rho=0.05,
        **BASE,
    ),
    "surgery": TrainConfig(backbone="test_convnext", levels=["make", "class"], balancer="upgrad", **BASE),
    "pmal": TrainConfig(backbone="test_resnet", method="pmal", noise="strong", **BASE),
}


def _with_gaps(manifest: Manifest) -> Manifest:
    """The four models as two makes; of the training images a sixth tell the model."""
    models, splits = manifest.column("model"), manifest.splits
    makes = ["A" if model in ("Model0", "Model1") else "B" for model in models]
    rows = enumerate(zip(models, splits, strict=True))
    told = [model if split != "train" or row % 6 == 0 else "" for row, (model, split) in rows]
    columns = {"path": manifest.table["path"], "make": makes, "model": told, "split": splits}
    return Manifest.from_columns(columns, manifest.root)


def main(pictures: str, out: str) -> None:
    """Fit every method of SETTINGS in the processes there are."""
    from lightning.fabric import Fabric

    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto")
    fabric.launch()
    for name, config in SETTINGS.items():
        torch.manual_seed(0)
        manifest = Manifest.load(pictures)
        samples = open_samples(_with_gaps(manifest) if config.levels else manifest, config)
        backbone = Backbone(config.backbone, 0 if config.levels else 4)
        if samples.levels is not None:
            spec = HierarchySpec(samples.levels.names)
            method: Any = Multitask(HierarchicNetwork(backbone, samples.levels, spec), config)
        elif name == "plain":
            method = Plain(backbone, config)
        else:
            method = Progressive(ProgressiveNetwork(backbone, 4, "lean"), config)
        fitted = fit(method, samples, config, fabric, Path(out) / name, progress=False)
        assert len(fitted.history) == 2
        save_file(method.network.state_dict(), Path(out) / f"{name}-{world}-{fabric.global_rank}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
