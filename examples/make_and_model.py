"""Make and model from one trunk, in a loop of your own: heads, losses with gaps, one consistent answer, the back-off.

python examples/make_and_model.py [FORM]

FORM is parallel, coarse_to_fine, fine_to_coarse or conditional. Twelve rendered models of three makes at 32 px stand
for the data; of a third of the training images only the make is told. A minute teaches little, it shows the parts.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import vmmr.torchvision_ops  # noqa: F401  (before timm)
from vmmr.data.rendered import World, draw
from vmmr.evaluation.hierarchy import fit_beta, hierarchy_scores, level_scores
from vmmr.levels import Levels
from vmmr.models.decoding import back_off, confidences_by_level, independent, joint_scores
from vmmr.models.heads import HierarchyHead
from vmmr.objectives import level_losses
from vmmr.taxonomy import Taxonomy

import timm  # isort: skip

MAKES, MODELS = 3, 4


def main(form: str = "parallel", batches: int = 60, images: int = 360) -> dict[str, float | None]:
    """Train on two thirds of the images, fit beta on a sixth, and return how make and model go together on the rest."""
    torch.manual_seed(0)
    names = [f"make {number // MODELS}" for number in range(MAKES * MODELS)]
    cars = Taxonomy.from_rows(names, [f"model {number % MODELS}" for number in range(MAKES * MODELS)])
    levels = Levels(cars, ("make", "model"))
    drawn = draw(World(seed=0, makes=MAKES, models_per_make=MODELS, years=1), images, size=32)
    shown = torch.from_numpy(drawn["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1  # [N, 3, 32, 32] in [-1, 1]
    truth = {"make": drawn["label"] // MODELS, "model": drawn["label"]}
    learn, fit, judge = np.split(np.arange(images), [2 * images // 3, 5 * images // 6])

    trunk = timm.create_model("test_resnet", num_classes=0)
    parents = {"model": levels.parents("model", "make")}
    head = HierarchyHead(trunk.head_hidden_size, levels.widths, form=form, dropout=0.2, parents=parents)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=3e-3)

    def logits(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name.removeprefix("logits_"): found for name, found in head(trunk(shown[rows])).items()}

    random = np.random.default_rng(0)
    for _ in range(batches):
        rows = random.choice(learn, 24, replace=False)
        told = {"make": truth["make"][rows], "model": np.where(rows % 3 == 0, -1, truth["model"][rows])}
        losses = level_losses(logits(rows), {name: torch.from_numpy(labels) for name, labels in told.items()})
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    trunk.eval()
    head.eval()
    with torch.no_grad():
        held, seen = logits(fit), logits(judge)
    beta = fit_beta(held, truth["model"][fit], levels)
    scores = joint_scores(seen, levels, beta)
    labels = {name: found[judge] for name, found in truth.items()}
    alone = {name: answer.numpy() for name, answer in independent(seen).items()}
    said, sure = confidences_by_level(scores, levels)
    model = scores.argmax(dim=1).numpy()
    together = {"model": model, "make": cars.make_of[model]}
    for name, found in level_scores(seen, labels).items():
        print(f"{name:6} top-1 {found['top1']:.2f}")
    for way, answers in (("each by itself", alone), (f"together, beta {beta:.2f}", together)):
        shares = hierarchy_scores(answers, labels, levels)
        print(f"{way}: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items() if share is not None))
    depth = back_off(sure, {"make": 0.6, "model": 0.6})
    for place, level in enumerate(levels.tree):
        right = (said[level].numpy() == labels[level])[depth.numpy() == place]
        print(f"said at {level}: {len(right)} of {len(judge)}, {int(right.sum())} right")
    return hierarchy_scores(together, labels, levels)


if __name__ == "__main__":
    main(*sys.argv[1:])
