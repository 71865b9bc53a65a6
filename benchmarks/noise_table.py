"""How much each corruption takes away at each severity, as a table of PSNR, and what it looks like.

    python benchmarks/noise_table.py                         # the table, in Markdown
    python benchmarks/noise_table.py --pictures docs/images  # and what the corruptions and training noise look like

The image is a car drawn with straight lines and ellipses at twice its size, so that the figures need no data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw

from vmmr.noise import HELD_OUT_OPS, OPS, TRAIN_OPS, TRAINING_NOISE

__all__ = ["drawn_car", "psnr", "table"]


def drawn_car(size: int = 224) -> torch.Tensor:
    """A car from the side on a road, [3, size, size] in [0, 1]."""
    big = 448
    sky = np.linspace((120, 160, 205), (205, 215, 225), big).astype(np.uint8)
    image = Image.fromarray(np.repeat(sky[:, None], big, axis=1))
    draw = ImageDraw.Draw(image)
    random = np.random.default_rng(0)
    for left in range(0, big, 56):
        top = int(random.integers(60, 150))
        draw.rectangle((left, top, left + 52, 300), fill=tuple(int(v) for v in random.integers(90, 170, 3)))
        for row in range(top + 12, 270, 26):
            for column in (left + 8, left + 30):
                draw.rectangle((column, row, column + 12, row + 14), fill=(60, 70, 90))
    draw.rectangle((0, 290, big, big), fill=(88, 88, 92))
    for left in range(10, big, 90):
        draw.rectangle((left, 400, left + 46, 408), fill=(225, 225, 215))
    draw.ellipse((40, 338, 420, 372), fill=(40, 40, 44))
    draw.polygon(
        [(34, 262), (96, 246), (148, 186), (292, 182), (352, 242), (412, 256), (418, 336), (34, 336)], "#b3202a"
    )
    draw.polygon([(112, 244), (156, 198), (212, 195), (212, 244)], "#2c3846")
    draw.polygon([(224, 244), (224, 195), (286, 194), (332, 240)], "#2c3846")
    draw.line([(218, 194), (218, 330)], fill="#7d141c", width=3)
    draw.line([(40, 280), (414, 276)], fill="#d9606a", width=3)
    draw.rectangle((232, 262, 254, 268), fill="#e8d0d2")
    draw.polygon([(398, 262), (416, 266), (417, 284), (400, 280)], "#fdf3c4")
    draw.polygon([(34, 266), (48, 264), (48, 286), (34, 288)], "#ff7a3c")
    draw.rectangle((34, 316, 418, 338), fill="#3a3a3e")
    for centre in (112, 338):
        draw.ellipse((centre - 38, 298, centre + 38, 374), fill="#17171a")
        draw.ellipse((centre - 24, 312, centre + 24, 360), fill="#b9bcc2")
        for angle in np.linspace(0, 2 * np.pi, 5, endpoint=False):
            end = (centre + 22 * np.cos(angle), 336 + 22 * np.sin(angle))
            draw.line([(centre, 336), end], fill="#55585e", width=6)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def psnr(noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio of each image in dB, [B], for images in [0, 1]."""
    return -10 * (noisy - clean).square().mean(dim=(1, 2, 3)).log10()


def table(size: int, draws: int = 8) -> dict[str, list[float]]:
    """Mean PSNR in dB of every corruption at severities 1 to 5 over several draws."""
    clean = drawn_car(size).expand(draws, 3, size, size)
    generator = torch.Generator().manual_seed(0)
    return {
        name: [psnr(OPS[name](clean, float(s), generator=generator), clean).mean().item() for s in range(1, 6)]
        for name in (*TRAIN_OPS, *HELD_OUT_OPS)
    }


def _grid(rows: dict[str, torch.Tensor], titles: list[str], path: Path) -> None:
    """A PNG of labelled rows of images, each row [n, 3, H, W] in [0, 1]."""
    columns = max(len(row) for row in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.3 * columns, 1.3 * len(rows)), layout="constrained")
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=8)
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image.permute(1, 2, 0).numpy())
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=8)
    figure.savefig(path, dpi=72, pil_kwargs={"optimize": True})


def _pictures(folder: Path) -> None:
    matplotlib.use("agg")
    clean = drawn_car()[None]
    rows = {
        name + ("\n(held out)" if name in HELD_OUT_OPS else ""): torch.cat(
            [OPS[name](clean, float(s), generator=torch.Generator().manual_seed(1)) for s in range(6)]
        )
        for name in (*TRAIN_OPS, *HELD_OUT_OPS)
    }
    _grid(rows, [f"severity {s}" for s in range(6)], folder / "noise-severities.png")

    rows = {}
    for name, noise in TRAINING_NOISE.items():
        out = noise(2 * clean.expand(8, -1, -1, -1) - 1, generator=torch.Generator().manual_seed(4))
        if name == "published":
            rows["published:\ntarget"] = (out["target"] + 1) / 2
        if name != "none":
            rows[f"{name}:\nnoisy"] = ((out["noisy"] + 1) / 2).clamp(0, 1)
    _grid(rows, [""] * 8, folder / "noise-training.png")


def main() -> None:
    """Print the table; draw the sheets where a folder is named for them."""
    parser = argparse.ArgumentParser(description="PSNR in dB of every corruption at every severity")
    parser.add_argument("--pictures", type=Path, help="folder for PNG sheets of all corruptions")
    arguments = parser.parse_args()
    small, large = table(128), table(224)
    print("| corruption | in training | " + " | ".join(f"{s}" for s in range(1, 6)) + " | at 128 px: 1 | 3 | 5 |")
    print("|---|---|" + "---|" * 8)
    for name, row in large.items():
        seen = "yes" if name in TRAIN_OPS else "no"
        cells = [*row, *(small[name][level] for level in (0, 2, 4))]
        print(f"| {name} | {seen} | " + " | ".join(f"{value:.1f}" for value in cells) + " |")
    if arguments.pictures:
        _pictures(arguments.pictures)


if __name__ == "__main__":
    main()
