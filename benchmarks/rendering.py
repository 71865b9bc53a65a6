"""How many rendered vehicles a second on one core: `python benchmarks/rendering.py [--size 128] [--count 96]`.

Each sample is made from nothing but its number: a vehicle that was not seen before, its scene, the picture at twice the
size and averaged down, the part mask, both read back, and the truth. The meshes of the models are built beforehand, as
a data set would have them after its first few pictures. Processor time is what counts on a busy machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib import colormaps
from PIL import Image

from vmmr.data.rendered import LIGHTS, VIEWPOINTS, Renderer, Sample, Trajectory, World, portrait

PART_COLOURS = np.uint8(np.concatenate([[(0.1, 0.1, 0.1)], colormaps["tab20"](range(15))[:, :3]]) * 255)


def rates(size: int, count: int, rounds: int) -> tuple[float, float, float]:
    """Samples a second: the median round by the wall clock, the median and the best by the processor's time."""
    world = World(fleet=100_000)
    classes = len(world.models) * world.years
    walls, cpus = [], []
    with Renderer(size) as renderer:

        def make(number: int) -> None:
            model, year = divmod(number % classes, world.years)
            renderer.render(portrait(world, world.vehicle(model, year, number // classes), number))

        for number in range(classes):
            make(number)
        for start in range(classes, classes + rounds * count, count):
            wall, cpu = time.perf_counter(), time.process_time()
            for number in range(start, start + count):
                make(number)
            walls.append((time.perf_counter() - wall) / count)
            cpus.append((time.process_time() - cpu) / count)
    return 1 / median(walls), 1 / median(cpus), 1 / min(cpus)


def sheets(folder: Path) -> None:
    """The pictures of docs/rendered.md."""
    world = World()
    cameras = world.fixed_cameras

    def paste(name: str, rows: list[list[np.ndarray]]) -> None:
        image = Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows], 0))
        image.save(folder / f"rendered-{name}.jpg", quality=88, subsampling=0)

    def shot(key: tuple[int, int, int], seed: int, viewpoint: str, camera: int, light: str, size: int = 128) -> Sample:
        with Renderer(size) as renderer:
            scene = portrait(world, world.vehicle(*key), seed, viewpoint=viewpoint, camera=cameras[camera], light=light)
            return renderer.render(scene)

    lights, columns = list(LIGHTS), range(world.models_per_make)
    models = [
        [
            shot((m, 0, 3), m, ("front-left", "front-right")[k % 2], (0, 3, 2, 1)[k], lights[(i + k) % 4], 144).image
            for k in columns
            for m in [i * world.models_per_make + k]
        ]
        for i in range(world.makes)
    ]
    paste("models", models)

    views = []
    for key, camera in (((1, 1, 2), 1), ((7, 0, 1), 3)):
        samples = [shot(key, 5, viewpoint, camera, "morning", 112) for viewpoint in VIEWPOINTS]
        views += [[s.image for s in samples], [PART_COLOURS[s.mask] for s in samples]]
    paste("viewpoints", views)

    years = [
        [
            shot((m, year, 1), 20 + m, view, 2, "overcast", 144).image
            for view in ("front", "rear-left")
            for year in (0, 1)
        ]
        for m in (0, 4, 9, 13)
    ]
    paste("years", years)
    fleet = [[shot((5, 0, 6 * i + k), 3, "front-right", 3, "noon").image for k in range(6)] for i in range(2)]
    paste("fleet", fleet)
    lane = Trajectory.passing(
        world, world.vehicle(12, 1, 2), cameras[0], 4, frames=6, rate=2.0, light="noon", field=30.0
    )
    with Renderer((96, 144)) as renderer:
        paste("trajectory", [[renderer.render(scene).image for scene in lane.scenes()]])


def main() -> None:
    """Print the rates for the sizes asked for, or draw the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128, 224], help="pixels a side")
    parser.add_argument("--count", type=int, default=96, help="samples a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sheets", type=Path, help="draw the contact sheets of the documentation into this folder")
    arguments = parser.parse_args()
    if arguments.sheets:
        sheets(arguments.sheets)
        return
    print("samples a second on one core")
    print("size  wall, median  processor, median  processor, best")
    for size in arguments.size:
        wall, cpu, best = rates(size, arguments.count, arguments.rounds)
        print(f"{size:4d}  {wall:12.0f}  {cpu:17.0f}  {best:15.0f}")


if __name__ == "__main__":
    main()
