"""Colour of every vertex: daylight, the paint's gloss and what it mirrors of sky and ground.

The renderer draws smooth vertex colours; this is where they come from. The sum is a hemisphere of ambient light, one
lambertian sun, and a mirrored surrounding weighted by Schlick's approximation of Fresnel's law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vmmr.data.rendered.mesh import SIGNS, Floats, Material, Mesh
from vmmr.data.rendered.world import Vehicle

__all__ = ["LIGHTS", "Light", "palette", "shade"]

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """One time of day: linear colours of sun, sky and ground, the sun's elevation in degrees, lamps lit or not."""

    name: str
    sun: Colour
    sky: Colour
    ground: Colour
    elevation: float
    lamps: float = 0.0


LIGHTS: dict[str, Light] = {
    light.name: light
    for light in (
        Light("noon", (0.80, 0.77, 0.70), (0.50, 0.62, 0.80), (0.30, 0.29, 0.27), 58),
        Light("morning", (0.74, 0.66, 0.52), (0.46, 0.57, 0.74), (0.26, 0.25, 0.23), 28),
        Light("overcast", (0.12, 0.12, 0.12), (0.74, 0.77, 0.80), (0.34, 0.34, 0.34), 70),
        Light("evening", (0.72, 0.42, 0.20), (0.44, 0.42, 0.48), (0.24, 0.20, 0.17), 14, 0.4),
        Light("dusk", (0.05, 0.05, 0.08), (0.24, 0.28, 0.40), (0.12, 0.12, 0.14), 40, 0.9),
    )
}


def palette(vehicle: Vehicle, light: Light) -> Floats:
    """The materials of one vehicle, [M, 6]: diffuse red, green, blue, mirror at normal incidence, gloss, glow."""
    table = np.zeros((Material.FIRST_SIGN + SIGNS, 6), np.float32)

    def put(material: Material, colour: Colour, mirror: float, sun: float, glow: float = 0.0) -> None:
        table[material] = (*colour, mirror, sun, glow)

    tint = 0.02 if vehicle.mark == "tinted" else 0.07
    rng = np.random.default_rng(vehicle.plate)
    box = ((0.75, 0.75, 0.73), (0.20, 0.30, 0.50), (0.55, 0.12, 0.10), (0.55, 0.52, 0.42))[int(rng.integers(4))]
    put(Material.PAINT, vehicle.paint, 0.07, 0.9)
    put(Material.GLASS, (tint, tint * 1.1, tint * 1.15), 0.14 if tint > 0.05 else 0.08, 0.8)
    put(Material.RUBBER, (0.035, 0.035, 0.04), 0.0, 0.0)
    put(Material.RIM, (0.52, 0.53, 0.55), 0.25, 0.4)
    put(Material.HEAD_LAMP, (0.80, 0.82, 0.86), 0.30, 0.6, light.lamps)
    put(Material.TAIL_LAMP, (0.55, 0.03, 0.03), 0.08, 0.5, 0.7 * light.lamps)
    put(Material.INDICATOR, (0.80, 0.35, 0.04), 0.08, 0.5)
    put(Material.CHROME, (0.45, 0.46, 0.48), 0.55, 0.8)
    put(Material.DARK, (0.018, 0.018, 0.02), 0.0, 0.0)
    put(Material.PLASTIC, (0.07, 0.07, 0.075), 0.02, 0.1)
    put(Material.PLATE, (0.85, 0.85, 0.80), 0.02, 0.1)
    table[Material.FIRST_SIGN :] = table[Material.PLATE]
    table[Material.FIRST_SIGN + np.flatnonzero(rng.random(SIGNS) < 0.62), :3] = (0.05, 0.05, 0.10)
    put(Material.BADGE, vehicle.model.face.badge_colour, 0.3, 0.5)
    put(Material.CARGO, box, 0.02, 0.1)
    put(Material.MARK, vehicle.mark_colour, 0.02, 0.1)
    put(Material.ACCENT, (0.12, 0.12, 0.13), 0.05, 0.2)
    return table


def shade(
    mesh: Mesh, colours: Floats, light: Light, *, eye: npt.ArrayLike, sun: npt.ArrayLike, gain: npt.ArrayLike
) -> npt.NDArray[np.uint8]:
    """Vertex colours [V, 4] of a mesh in its own frame.

    colours: a palette. eye: the camera's place. sun: unit vector towards the sun. gain: exposure, one or three values.
    """
    # Components first: numpy is several times quicker along a long last axis.
    n, p, material = mesh.normals.T.copy(), mesh.vertices.T.copy(), colours.T[:, mesh.material]
    diffuse, mirror, gloss, glow = material[:3], material[3], material[4], material[5]
    toward = np.asarray(sun, np.float32)
    sky, ground, beam = (np.array(c, np.float32)[:, None] for c in (light.sky, light.ground, light.sun))
    view = np.asarray(eye, np.float32)[:, None] - p
    view /= np.sqrt(view[0] * view[0] + view[1] * view[1] + view[2] * view[2])
    facing = n[0] * view[0] + n[1] * view[1] + n[2] * view[2]
    mirrored = 2 * facing * n - view

    up = 0.5 + 0.5 * n[2]
    # Close to the road less of the sky is seen: a soft contact shadow that grounds the vehicle.
    open_sky = np.clip(0.45 + 0.9 * p[2], 0, 1)
    colour = diffuse * (ground * (open_sky * (1 - up)) + sky * (open_sky * up) + beam * np.maximum(toward @ n, 0))

    grazing = np.square(1 - np.minimum(np.abs(facing), 1))
    fresnel = mirror + 0.55 * gloss * grazing * grazing
    height = mirrored[2]
    above = np.clip(height * 9 + 0.4, 0, 1)
    # The horizon is brighter than the zenith, and the ground is darker than both.
    seen_sky = fresnel * above * (1.25 - 0.55 * np.clip(height, 0, 1))
    flash = np.square(np.square(np.maximum(toward @ mirrored, 0)))
    flash = 0.7 * gloss * np.square(np.square(flash)) * np.square(flash)
    colour += sky * seen_sky + ground * (0.55 * fresnel * (1 - above)) + beam * flash + diffuse * (1.4 * glow)
    # Encode linear light for the screen; a square root is close to sRGB and cheap.
    encoded = np.sqrt(np.clip(colour * np.asarray(gain, np.float32).reshape(-1, 1), 0, 1))
    out = np.full((len(mesh.vertices), 4), 255, np.uint8)
    out[:, :3] = (encoded * 255).T
    return out
