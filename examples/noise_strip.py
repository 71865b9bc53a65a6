"""A vehicle in bad weather and worse cameras: one row a corruption, severities 0 to 5 from left to right.

    python examples/noise_strip.py [PICTURE.png]

Draws a vehicle, applies the operators of `vmmr.noise.OPS`, and prints the PSNR of every level.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from vmmr.data.rendered import Renderer, World, portrait
from vmmr.noise import OPS

SEVERITIES = torch.arange(6.0)


def main(target: Path = Path("noise_strip.png"), names: tuple[str, ...] = tuple(OPS), size: int = 128) -> torch.Tensor:
    """Write the picture; returns the degraded images, float [operators, severities, 3, size, size] in [0, 1]."""
    world = World(seed=0)
    with Renderer(size) as renderer:
        sample = renderer.render(portrait(world, world.vehicle(model=5, year=1, number=7), 0, viewpoint="front-left"))
    clean = torch.from_numpy(sample.image).permute(2, 0, 1).float() / 255

    # One call a corruption: the six severities are the batch, and the seed makes the picture repeatable.
    batch = clean.expand(len(SEVERITIES), -1, -1, -1)
    strip = torch.stack([OPS[name](batch, SEVERITIES, generator=torch.Generator().manual_seed(0)) for name in names])

    for name, row in zip(names, strip, strict=True):
        psnr = -10 * (row[1:] - clean).square().mean(dim=(1, 2, 3)).log10()
        print(f"{name:12}" + " ".join(f"{value:5.1f}" for value in psnr) + " dB at severities 1 to 5")
    rows = strip.permute(0, 3, 1, 4, 2).reshape(len(names) * size, len(SEVERITIES) * size, 3)
    Image.fromarray((rows * 255).round().byte().numpy()).save(target)
    print(f"wrote {target}")
    return strip


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
