"""Triangle meshes in numpy: smooth sheets, boxes and bodies of revolution; each vertex has a part and a material.

The vehicle's frame: x forward, y to the left, z up, metres, the ground at z = 0, the origin under the middle of the
vehicle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["SIGNS", "Floats", "Material", "Mesh", "box", "ellipse", "join", "mirror", "quad", "revolve", "surface"]

Floats = npt.NDArray[np.float32]


class Material(IntEnum):
    """Rows of a palette; `vmmr.data.rendered.light.palette` gives each a colour and a gloss.

    The `SIGNS` rows from `FIRST_SIGN` on are the signs of a number plate.
    """

    PAINT = 0
    GLASS = 1
    RUBBER = 2
    RIM = 3
    HEAD_LAMP = 4
    TAIL_LAMP = 5
    INDICATOR = 6
    CHROME = 7
    DARK = 8
    PLASTIC = 9
    PLATE = 10
    BADGE = 12
    CARGO = 13
    MARK = 14
    ACCENT = 15
    FIRST_SIGN = 16


SIGNS = 7
"""How many signs a number plate has."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices and unit normals [V, 3], faces [F, 3] counter-clockwise from outside, part and material [V]."""

    vertices: Floats
    normals: Floats
    faces: npt.NDArray[np.int32]
    part: npt.NDArray[np.uint8]
    material: npt.NDArray[np.uint8]


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many; vertices are not welded."""
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.faces + np.int32(s) for m, s in zip(meshes, starts, strict=False)]),
        np.concatenate([m.part for m in meshes]),
        np.concatenate([m.material for m in meshes]),
    )


def mirror(mesh: Mesh) -> Mesh:
    """The same on the other side of the vehicle's middle plane."""
    flip = np.array([1, -1, 1], np.float32)
    return Mesh(mesh.vertices * flip, mesh.normals * flip, mesh.faces[:, ::-1], mesh.part, mesh.material)


def surface(
    points: npt.ArrayLike,
    part: npt.ArrayLike,
    material: npt.ArrayLike,
    *,
    inside: npt.ArrayLike = (0.0, 0.0, 0.6),
    keep: npt.NDArray[np.bool_] | None = None,
) -> Mesh:
    """A smooth sheet over a grid of points [R, C, 3], turned so that it faces away from the point `inside`.

    `part`, `material` and `keep` are one value or one a cell, [R-1, C-1]. Normals are smooth across parts, but vertices
    are split between them, so that a part never bleeds into its neighbour.
    """
    grid = np.asarray(points, np.float32)
    rows, columns = grid.shape[:2]
    across = np.cross(grid[1:, 1:] - grid[:-1, :-1], grid[:-1, 1:] - grid[1:, :-1])
    normals = np.zeros_like(grid)
    halves = (slice(None, -1), slice(1, None))
    for row in halves:
        for column in halves:
            normals[row, column] += across
    outward = grid - np.asarray(inside, np.float32)
    turned = float((normals * outward).sum()) < 0
    normals = -normals if turned else normals
    size = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.where(size > 1e-9, normals, outward)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12

    index = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    cells = np.stack([a, d, c, a, c, b] if turned else [a, c, d, a, b, c], -1).reshape(-1, 2, 3)
    if np.ndim(part) == 0 and np.ndim(material) == 0 and keep is None:
        kinds = (np.full(index.size, part, np.uint8), np.full(index.size, material, np.uint8))
        return Mesh(grid.reshape(-1, 3), normals.reshape(-1, 3), cells.reshape(-1, 3), *kinds)
    shape = (rows - 1, columns - 1)
    kind = np.broadcast_to(np.asarray(part, np.int32) * 256 + np.asarray(material, np.int32), shape).ravel()
    kept = np.ones(kind.shape, bool) if keep is None else keep.ravel()
    pieces = []
    for value in np.unique(kind[kept]):
        used, faces = np.unique(cells[kept & (kind == value)], return_inverse=True)
        pieces.append(
            Mesh(
                grid.reshape(-1, 3)[used],
                normals.reshape(-1, 3)[used],
                faces.reshape(-1, 3).astype(np.int32),
                np.full(len(used), value // 256, np.uint8),
                np.full(len(used), value % 256, np.uint8),
            )
        )
    return join(pieces)


def quad(corners: npt.ArrayLike, cells: tuple[int, int] = (2, 4)) -> Floats:
    """Flat points [R+1, C+1, 2] of a quadrilateral: corners run bottom-left, bottom-right, top-right, top-left.

    >>> quad([(0, 0), (2, 0), (2, 1), (0, 1)], (1, 2))[1, 1].tolist()
    [1.0, 1.0]
    """
    p = np.asarray(corners, np.float32)
    v = np.linspace(0, 1, cells[0] + 1, dtype=np.float32)[:, None, None]
    u = np.linspace(0, 1, cells[1] + 1, dtype=np.float32)[None, :, None]
    flat: Floats = (1 - v) * ((1 - u) * p[0] + u * p[1]) + v * ((1 - u) * p[3] + u * p[2])
    return flat


def ellipse(centre: tuple[float, float], radii: tuple[float, float], corners: int = 11) -> Floats:
    """Flat points [3, corners+1, 2] of an ellipse, from its middle outwards; 4 corners make a diamond."""
    angle = np.linspace(0, 2 * np.pi, corners + 1, dtype=np.float32)
    rim = np.stack([np.cos(angle), np.sin(angle)], -1) * np.asarray(radii, np.float32)
    scale = np.array([0, 0.6, 1], np.float32)[:, None, None]
    flat: Floats = np.asarray(centre, np.float32) + scale * rim
    return flat


_BOX = np.array([(0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7), (4, 5, 6, 7), (3, 2, 1, 0)])


def box(low: Sequence[float], high: Sequence[float], part: int, material: int, *, bevel: float = 0.0) -> Mesh:
    """An upright box with flat faces, its top drawn in by `bevel` on all four sides."""
    (x0, y0, z0), (x1, y1, z1), b = low, high, bevel
    foot = [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]
    head = [(x0 + b, y0 + b, z1), (x1 - b, y0 + b, z1), (x1 - b, y1 - b, z1), (x0 + b, y1 - b, z1)]
    sides = np.array(foot + head, np.float32)[_BOX]
    normals = np.cross(sides[:, 1] - sides[:, 0], sides[:, 3] - sides[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    faces = (np.array([(0, 1, 2), (0, 2, 3)]) + 4 * np.arange(6)[:, None, None]).reshape(-1, 3)
    kinds = (np.full(24, part, np.uint8), np.full(24, material, np.uint8))
    return Mesh(sides.reshape(-1, 3), np.repeat(normals, 4, 0), faces.astype(np.int32), *kinds)


def revolve(
    centre: npt.ArrayLike,
    profile: Sequence[tuple[float, float]],
    part: int,
    material: npt.ArrayLike,
    *,
    corners: int = 15,
) -> Mesh:
    """A body turned about the y axis through `centre`; the profile is pairs of (y offset, radius), inside first.

    `material` is one value or one a profile segment.
    """
    angle = np.linspace(0, 2 * np.pi, corners + 1, dtype=np.float32)
    offset, radius = np.asarray(profile, np.float32).T[:, :, None]
    ring = np.stack(
        [radius * np.cos(angle), np.broadcast_to(offset, (len(profile), corners + 1)), radius * np.sin(angle)], -1
    )
    kinds = np.broadcast_to(np.asarray(material), (len(profile) - 1,))[:, None]
    middle = np.asarray(centre, np.float32)
    return surface(ring + middle, part, kinds, inside=middle - (0, 0.4 * np.sign(middle[1]), 0))
