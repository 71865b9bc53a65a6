"""How much each corruption takes away at each severity, as a table of PSNR, what it looks like, and what it costs.

    python benchmarks/noise_table.py                         # the table, in Markdown
    python benchmarks/noise_table.py --pictures docs/images  # and what the corruptions and training noise look like
    python benchmarks/noise_table.py --time                  # milliseconds an image instead

The images are rendered vehicles, so that the figures need no data.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt

from vmmr.data.rendered import Renderer, World, draw, portrait
from vmmr.noise import TRAIN_OPS, TRAINING_NOISE
from vmmr.noise.benchmark import CAMERA, COMMON, CORRUPTIONS, VALIDATION, corrupt

__all__ = ["milliseconds", "psnr", "table", "vehicle", "vehicles"]

GROUPS = {"common": COMMON, "validation": VALIDATION, "camera": CAMERA}


def vehicle(size: int = 224) -> torch.Tensor:
    """A rendered car from the front, [3, size, size] in [0, 1]."""
    world = World(seed=0)
    with Renderer(size) as renderer:
        sample = renderer.render(portrait(world, world.vehicle(model=5, year=1, number=7), 0, viewpoint="front-left"))
    return torch.from_numpy(sample.image).permute(2, 0, 1).contiguous() / 255


def vehicles(size: int, n: int = 16) -> torch.Tensor:
    """Rendered vehicles from all sides, [n, 3, size, size] in [0, 1]."""
    return torch.from_numpy(draw(World(), n, size=size, seed=7)["image"]).permute(0, 3, 1, 2).contiguous() / 255


def psnr(noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio of each image in dB, [B], for images in [0, 1]."""
    return -10 * (noisy - clean).square().mean(dim=(1, 2, 3)).log10()


def table(size: int) -> dict[str, list[float]]:
    """Mean PSNR in dB of every corruption at severities 1 to 5."""
    clean = vehicles(size)
    keys = torch.arange(len(clean))
    return {
        name: [psnr(corrupt(clean, name, severity, keys=keys), clean).mean().item() for severity in range(1, 6)]
        for name in CORRUPTIONS
    }


def milliseconds(size: int, batch: int = 32, repeats: int = 3) -> dict[str, float]:
    """CPU time of every corruption in ms an image on one thread, mean over severities 1, 3 and 5, best of a few."""
    torch.set_num_threads(1)
    clean, keys = vehicles(size, batch), torch.arange(batch)
    spent = {}
    for name in CORRUPTIONS:
        best = []
        for severity in (1, 3, 5):
            times = []
            for _ in range(repeats):
                start = time.process_time()
                corrupt(clean, name, severity, keys=keys)
                times.append(time.process_time() - start)
            best.append(min(times))
        spent[name] = 1e3 * sum(best) / len(best) / batch
    return spent


def _sheet(clean: torch.Tensor, path: Path) -> None:
    """A JPEG of every corruption at severities 1, 3 and 5, three corruptions a line."""
    lines = -(-len(CORRUPTIONS) // 3)
    figure, axes = plt.subplots(lines, 9, figsize=(10.8, 1.36 * lines), gridspec_kw={"wspace": 0.03, "hspace": 0.2})
    figure.subplots_adjust(left=0.005, right=0.995, top=0.98, bottom=0.005)
    for ax in axes.flat:
        ax.axis("off")
    for i, name in enumerate(CORRUPTIONS):
        for j, severity in enumerate((1, 3, 5)):
            ax = axes[i // 3, 3 * (i % 3) + j]
            image = corrupt(clean[None], name, severity, keys=torch.zeros(1, dtype=torch.long))[0]
            ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="antialiased")
            ax.set_title(name if j == 0 else f"at {severity}", fontsize=8, pad=2, loc="left")
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 82, "optimize": True})


def _grid(rows: dict[str, torch.Tensor], path: Path) -> None:
    """A JPEG of labelled rows of images, each row [n, 3, H, W] in [0, 1]."""
    columns = max(len(row) for row in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.3 * columns, 1.3 * len(rows)), layout="constrained")
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=8)
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image.permute(1, 2, 0).numpy())
            ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=90, pil_kwargs={"quality": 82, "optimize": True})


def _pictures(folder: Path) -> None:
    matplotlib.use("agg")
    clean = vehicle()
    _sheet(clean, folder / "noise-severities.jpg")
    rows = {}
    for name, noise in TRAINING_NOISE.items():
        out = noise(2 * clean.expand(8, -1, -1, -1) - 1, generator=torch.Generator().manual_seed(4))
        if name == "published":
            rows["published:\ntarget"] = (out["target"] + 1) / 2
        if name != "none":
            rows[f"{name}:\nnoisy"] = ((out["noisy"] + 1) / 2).clamp(0, 1)
    _grid(rows, folder / "noise-training.jpg")


def main() -> None:
    """Print the table; draw the sheets where a folder is named for them."""
    parser = argparse.ArgumentParser(description="PSNR in dB of every corruption at every severity")
    parser.add_argument("--pictures", type=Path, help="folder for sheets of all corruptions and of training noise")
    parser.add_argument("--time", action="store_true", help="print milliseconds an image at 160 px instead")
    arguments = parser.parse_args()
    if arguments.time:
        spent = milliseconds(160)
        for name, value in sorted(spent.items(), key=lambda item: item[1]):
            print(f"{name:12} {value:5.2f} ms")
        for group, names in {**GROUPS, "all": tuple(CORRUPTIONS)}.items():
            print(f"mean of {group}: {sum(spent[name] for name in names) / len(names):.2f} ms")
        return
    small, large = table(128), table(224)
    print("| corruption | in training | 1 | 2 | 3 | 4 | 5 | at 128 px: 1 | 3 | 5 |")
    print("|---|---|" + "---|" * 8)
    for group, names in GROUPS.items():
        print(f"| *{group}* |" + " |" * 9)
        for name in names:
            cells = [*large[name], *(small[name][level] for level in (0, 2, 4))]
            seen = "yes" if name in TRAIN_OPS else "no"
            print(f"| {name} | {seen} | " + " | ".join(f"{value:.1f}" for value in cells) + " |")
    if arguments.pictures:
        _pictures(arguments.pictures)


if __name__ == "__main__":
    main()
