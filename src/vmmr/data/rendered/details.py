"""What tells makes, years and single vehicles apart: face, tail, badge, trim, plate and marks, laid on the body."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from vmmr.data.rendered.body import Shape, cabin, cargo, hull, wheels
from vmmr.data.rendered.mesh import SIGNS, Floats, Material, Mesh, box, ellipse, join, mirror, quad, surface
from vmmr.data.rendered.truth import Part
from vmmr.data.rendered.world import MARKS, Face, Model, Trim, Vehicle

__all__ = ["mark_mesh", "model_mesh", "vehicle_mesh"]

Place = Callable[[Floats, float], Floats]
Outline = tuple[tuple[float, float], ...]

# Outlines around the middle of the front, in half widths and heights of the grille: four corners each.
_GRILLES: dict[str, tuple[Outline, ...]] = {
    "wide": (((-1, -1), (1, -1), (1.1, 1), (-1.1, 1)),),
    "shield": (((-0.35, -2.6), (0.35, -2.6), (0.75, 1), (-0.75, 1)),),
    "twin": (((0.06, -1), (0.85, -1), (0.8, 1.1), (0.08, 1.1)), ((-0.85, -1), (-0.06, -1), (-0.08, 1.1), (-0.8, 1.1))),
    "slot": (((-1.1, -0.1), (1.1, -0.1), (1.1, 0.55), (-1.1, 0.55)),),
    "bars": (((-0.9, -1.7), (0.9, -1.7), (0.9, 1), (-0.9, 1)),),
    "hexagon": (((-0.6, -2.2), (0.6, -2.2), (1, -0.4), (-1, -0.4)), ((-1, -0.4), (1, -0.4), (0.75, 1), (-0.75, 1))),
    "closed": (),
    "mesh": (((-0.8, -1.3), (0.8, -1.3), (0.65, 1), (-0.65, 1)),),
}
# Outlines of the left lamp inwards from its outer edge, in its own widths and heights: four corners, or an ellipse's
# middle and radii.
_LAMPS: dict[str, tuple[Outline, ...]] = {
    "slim": (((-2.5, -0.5), (0, -0.5), (0, 0.8), (-2.5, 0.4)),),
    "round": (((-1.05, 0), (0.95, 1.7)),),
    "tall": (((-1.1, -2.6), (0, -2.6), (0, 1.4), (-1.3, 1.2)),),
    "slanted": (((-2.3, -1.5), (0, -0.2), (0, 1.8), (-1.7, 0.2)),),
    "twin round": (((-0.56, 0), (0.55, 1.1)), ((-1.94, 0), (0.5, 1.0))),
    "block": (((-1.8, -1.2), (0, -1.1), (0, 1.2), (-1.8, 1.2)),),
    "split": (
        ((-2.2, 0.8), (0, 0.8), (0, 1.6), (-2.2, 1.4)),
        ((-1.5, -2.4), (-0.6, -2.4), (-0.6, -0.8), (-1.5, -0.8)),
    ),
    "hook": (((-2.3, 0.4), (0, 0.4), (0, 1.5), (-2.3, 1.5)), ((-0.5, -2.4), (0, -2.4), (0, 0.4), (-0.5, 0.4))),
}
# The same for tail lamps, in half widths and shares of the tail's height.
_TAILS: dict[str, tuple[Outline, ...]] = {
    "wide": (((-0.43, -0.07), (0, -0.07), (0, 0.08), (-0.43, 0.08)),),
    "tall": (((-0.21, -0.26), (0, -0.26), (0, 0.16), (-0.21, 0.16)),),
    "bar": (((-0.95, -0.03), (0, -0.03), (0, 0.05), (-0.95, 0.05)),),
    "round": (((-0.17, 0), (0.15, 0.11)), ((-0.45, 0), (0.10, 0.075))),
    "corner": (((-0.35, -0.02), (0, -0.20), (0, 0.13), (-0.35, 0.13)),),
    "twin": (
        ((-0.47, 0.06), (0, 0.06), (0, 0.13), (-0.47, 0.13)),
        ((-0.47, -0.12), (0, -0.12), (0, -0.05), (-0.47, -0.05)),
    ),
    "slim": (((-0.60, 0), (0, -0.06), (0, 0.06), (-0.60, 0.03)),),
    "block": (((-0.31, -0.14), (0, -0.14), (0, 0.12), (-0.31, 0.12)),),
}


def _shape(outline: Outline, at: tuple[float, float], scale: tuple[float, float]) -> Floats:
    points = np.array(outline) * scale
    if len(points) == 2:
        return ellipse((points[0, 0] + at[0], points[0, 1] + at[1]), (points[1, 0], points[1, 1]))
    return quad(points + at, (2, 6))


def vehicle_mesh(vehicle: Vehicle) -> Mesh:
    """The whole vehicle: the mesh of its model and year, and its own marks."""
    mark = mark_mesh(vehicle.model, vehicle.mark, vehicle.variant)
    mesh = model_mesh(vehicle.model, vehicle.trim)
    return mesh if mark is None else join([mesh, mark])


@lru_cache(maxsize=512)
def model_mesh(model: Model, trim: Trim) -> Mesh:
    """All that the vehicles of one model and year share; their colours and plates are a matter of the palette."""
    shape, face = model.shape, model.face
    parts = [
        hull(shape, dark_bumper=trim.dark_bumper),
        cabin(shape),
        wheels(shape, spokes=trim.spokes, rim=face.rim),
        *cargo(shape),
        *_front(shape, face, trim),
        *_rear(shape, face, trim),
        *_flanks(shape, trim),
        *_roof(model, trim),
        *_plates(shape),
    ]
    return join(parts)


def _rect(y0: float, y1: float, z0: float, z1: float, cells: tuple[int, int] = (1, 3)) -> Floats:
    return quad([(y0, z0), (y1, z0), (y1, z1), (y0, z1)], cells)


def _stick(place: Place, flat: Floats, part: Part, material: Material, lift: float = 0.014) -> Mesh:
    return surface(place(flat, lift), part, material)


def _pair(place: Place, flat: Floats, part: Part, material: Material, lift: float = 0.014) -> list[Mesh]:
    left = _stick(place, flat, part, material, lift)
    return [left, mirror(left)]


def _front(shape: Shape, face: Face, trim: Trim) -> list[Mesh]:
    on = shape.front
    parts = [*_grille(shape, face, trim), *_lamps(shape, face, trim)]
    low = {
        "wide": [(-0.62, 0.62, 0.09, 0.20)],
        "centre": [(-0.36, 0.36, 0.07, 0.27)],
        "lip": [(-0.75, 0.75, 0.05, 0.09)],
    }
    for y0, y1, z0, z1 in low.get(face.intake, [(0.46, 0.78, 0.09, 0.29)]):
        flat = _rect(y0, y1, z0, z1, (1, 6))
        parts += (_pair if face.intake == "sides" else _one)(on, flat, Part.BUMPER, Material.DARK)
    if trim.fogs:
        parts += _pair(on, ellipse((0.70, 0.24), (0.06, 0.035)), Part.HEAD_LAMP, Material.HEAD_LAMP, 0.022)
    return parts


def _one(place: Place, flat: Floats, part: Part, material: Material, lift: float = 0.014) -> list[Mesh]:
    return [_stick(place, flat, part, material, lift)]


def _grille(shape: Shape, face: Face, trim: Trim) -> list[Mesh]:
    on, w, at = shape.front, face.grille_width, face.grille_at
    h = 0.13 * face.grille_height
    frame = Material.CHROME if face.chrome else Material.ACCENT
    parts = []
    for corners in _GRILLES[face.grille]:
        p = np.array(corners) * (w, h) + (0, at)
        grown = p.mean(0) + (p - p.mean(0)) * (1.12, 1.28)
        if face.grille != "hexagon":
            parts += _one(on, quad(grown, (2, 6)), Part.GRILLE, frame, 0.010)
        parts += _one(on, quad(p, (2, 6)), Part.GRILLE, Material.DARK, 0.020)
        bars = trim.grille_bars if face.grille != "hexagon" else max(1, trim.grille_bars // 2)
        for k in range(bars):
            if face.grille in ("bars", "twin", "shield"):
                t = (np.array([0, 0.28]) + k + 0.36) / bars
                low, high = p[0] + (p[1] - p[0]) * t[:, None], p[3] + (p[2] - p[3]) * t[:, None]
                bar = [low[0], low[1], high[1], high[0]]
            else:
                t = (np.array([0, 0.32]) + k + 0.34) / bars
                left, right = p[0] + (p[3] - p[0]) * t[:, None], p[1] + (p[2] - p[1]) * t[:, None]
                bar = [left[0], right[0], right[1], left[1]]
            parts += _one(on, quad(bar, (1, 6)), Part.GRILLE, frame, 0.030)
    return parts + _badge(on, face, (0.0, min(at + (0.24 if face.grille in ("slot", "closed") else 0.02), 0.88)))


def _badge(on: Place, face: Face, at: tuple[float, float]) -> list[Mesh]:
    corners = {"disc": 14, "ring": 14, "diamond": 4, "triangle": 3}
    if face.badge in corners:
        flat = ellipse(at, (0.085, 0.075), corners[face.badge])
    else:
        y, z = (0.16, 0.028) if face.badge == "bar" else (0.07, 0.06)
        flat = _rect(-y, y, at[1] - z, at[1] + z)
    parts = _one(on, flat, Part.BADGE, Material.BADGE, 0.042)
    if face.badge == "ring":
        parts += _one(on, ellipse(at, (0.05, 0.044)), Part.BADGE, Material.DARK, 0.05)
    return parts


def _lamps(shape: Shape, face: Face, trim: Trim) -> list[Mesh]:
    on, at, s = shape.front, face.lamp_at, face.slant
    w, h = 0.16 * face.lamp_width, 0.062 * face.lamp_height * trim.lamp_stretch
    out = 0.93
    parts = []
    for outline in _LAMPS[face.lamp]:
        flat = _shape(outline, (out, at), (w, h))
        flat[..., 1] += s * (flat[..., 0] - out + 2 * w)
        middle = flat.reshape(-1, 2).mean(0)
        parts += _pair(
            on, middle + (flat - middle) * np.array([1.14, 1.3], np.float32), Part.HEAD_LAMP, Material.ACCENT, 0.012
        )
        parts += _pair(on, flat, Part.HEAD_LAMP, Material.HEAD_LAMP, 0.024)
    if trim.lamp_line:
        low = at - 1.9 * h
        parts += _pair(
            on, _rect(out - 2.2 * w, out - 0.1, low - 0.014, low + 0.014), Part.HEAD_LAMP, Material.INDICATOR, 0.034
        )
    return parts


def _rear(shape: Shape, face: Face, trim: Trim) -> list[Mesh]:
    on, at, g = shape.rear, face.tail_height, trim.tail_stretch
    if shape.hull < shape.length:
        x, y = -shape.length / 2, shape.half
        return [
            part
            for s in (0.55, 0.78)
            for part in _boxes((x - 0.03, s * y, 0.45), (x, (s + 0.17) * y, 0.60), Part.TAIL_LAMP, Material.TAIL_LAMP)
        ]
    outlines = (_shape(outline, (0.95, at), (1.0, g)) for outline in _TAILS[face.tail])
    parts = [part for flat in outlines for part in _pair(on, flat, Part.TAIL_LAMP, Material.TAIL_LAMP, 0.016)]
    kind = Material.INDICATOR if trim.lamp_line else Material.HEAD_LAMP
    parts += _pair(on, _rect(0.72, 0.90, at - 0.02, at + 0.02), Part.TAIL_LAMP, kind, 0.026)
    parts += _one(on, _rect(-0.6, 0.6, 0.05, 0.12, (1, 6)), Part.BUMPER, Material.DARK)
    if trim.fogs:
        parts += _pair(on, _rect(0.60, 0.78, 0.24, 0.28), Part.TAIL_LAMP, Material.TAIL_LAMP)
    # The line of the tailgate or boot lid.
    parts += _one(on, _rect(-0.62, 0.62, 0.42, 0.435, (1, 6)), Part.BODY, Material.DARK, 0.006)
    return parts + _badge(on, face, (0.0, min(at + 0.10, 0.90)))


def _boxes(
    low: tuple[float, float, float], high: tuple[float, float, float], part: Part, material: Material
) -> list[Mesh]:
    left = box(low, high, part, material)
    return [left, mirror(left)]


def _flanks(shape: Shape, trim: Trim) -> list[Mesh]:
    on, front = shape.side, shape.length / 2
    first, last = shape.axles
    rear = max(last + shape.arch, front - shape.hull + 0.3) + 0.06
    ahead = first - shape.arch - 0.06
    parts = []
    if trim.strip and ahead - rear > 0.5:
        parts += _pair(on, _rect(rear, ahead, 0.30, 0.36, (1, 4)), Part.TRIM, Material.PLASTIC)
    doors = [p for p in (shape.cowl[0] + 0.12, *shape.pillars) if rear < front - p < ahead + 0.4][:3]
    for p in doors:
        x = front - p
        parts += _pair(on, _rect(x - 0.012, x + 0.012, 0.12, 0.985, (5, 1)), Part.BODY, Material.DARK, 0.006)
        if x - 0.95 > rear - 0.5:
            parts += _pair(on, _rect(x - 0.95, x - 0.75, 0.80, 0.835, (1, 1)), Part.TRIM, Material.ACCENT, 0.03)
    x, z = front - shape.cowl[0] - 0.42, shape.cowl[1] + 0.06
    y = shape.half * 0.93
    if shape.height < 2.4:
        parts += _boxes((x - 0.09, y, z), (x + 0.07, y + 0.20, z + 0.15), Part.MIRROR, Material.PAINT)
    else:
        parts += _boxes((x - 0.05, y + 0.02, z + 0.35), (x + 0.16, y + 0.32, z + 0.95), Part.MIRROR, Material.PLASTIC)
    return parts


def _roof(model: Model, trim: Trim) -> list[Mesh]:
    shape, front = model.shape, model.shape.length / 2
    a, b, top = front - shape.roof[1], front - shape.roof[0], shape.height
    y = shape.half * shape.roof_width * 0.86
    parts = []
    if trim.rails and model.body in ("suv", "hatch", "van", "sedan"):
        parts += _boxes((a + 0.25, y - 0.025, top - 0.02), (b - 0.2, y + 0.025, top + 0.05), Part.ROOF, Material.CHROME)
    if trim.spoiler and model.body in ("suv", "hatch", "van"):
        parts.append(
            box((a - 0.22, -y, top - 0.055), (a + 0.12, y, top - 0.005), Part.ROOF, Material.PAINT, bevel=0.02)
        )
    elif trim.spoiler and model.body == "sedan":
        x, z = front - shape.hull + 0.12, shape.tail
        parts.append(box((x, -y, z + 0.04), (x + 0.22, y, z + 0.11), Part.TRIM, Material.PAINT, bevel=0.02))
    if trim.rails and model.body == "bus":
        parts.append(box((-1.5, -0.7, top - 0.02), (1.4, 0.7, top + 0.22), Part.ROOF, Material.PLASTIC, bevel=0.1))
    if trim.spoiler and model.body in ("truck", "pickup"):
        parts.append(box((a + 0.05, -y, top - 0.02), (a + 0.5, y, top + 0.16), Part.ROOF, Material.PAINT, bevel=0.08))
    return parts


def _plates(shape: Shape) -> list[Mesh]:
    """Plates of one grid each: every second cell of the middle row is a sign, inked or not by the vehicle's palette."""
    half, height = 0.26 / shape.half, 0.055 / (shape.nose - shape.clearance)
    across = np.linspace(-half, half, 2 * SIGNS + 2)
    rows = height * np.array([-1, -0.6, 0.6, 1])
    material = np.full((3, 2 * SIGNS + 1), Material.PLATE)
    material[1, 1::2] = Material.FIRST_SIGN + np.arange(SIGNS)
    places: list[tuple[Place, float]] = [(shape.front, 0.20)]
    if shape.hull >= shape.length:
        places.append((shape.rear, 0.33))
    flats = [np.stack(np.meshgrid(across, at + rows), -1).astype(np.float32) for _, at in places]
    return [surface(on(flat, 0.035), Part.PLATE, material) for (on, _), flat in zip(places, flats, strict=True)]


@lru_cache(maxsize=2048)
def mark_mesh(model: Model, mark: str, variant: int) -> Mesh | None:
    """What one vehicle carries of its own, in one of `MARK_VARIANTS` places and sizes; None where that is nothing."""
    parts = _mark(model.shape, mark, np.random.default_rng([MARKS.index(mark), variant]))
    return join(parts) if parts else None


def _mark(shape: Shape, mark: str, rng: np.random.Generator) -> list[Mesh]:
    front, top, place = shape.length / 2, shape.height, float(rng.uniform(-0.25, 0.25))
    door = sum(shape.axles) / 2 + place
    roof = front - (shape.roof[0] + shape.roof[1]) / 2
    match mark:
        case "door sticker":
            flat = ellipse((door, 0.60), (float(rng.uniform(0.28, 0.5)), 0.17), int(rng.integers(3, 13)))
            return _pair(shape.side, flat, Part.MARK, Material.MARK)
        case "bonnet stripe":
            flat = _rect(front - shape.cowl[0] + 0.05, front - 0.3 * shape.lean - 0.2, 0.0, 0.18, (4, 1))
            return _pair(shape.bonnet, flat + np.array([0, 0.08 + abs(place)]), Part.MARK, Material.MARK, 0.02)
        case "roof box":
            low, high = (roof - 0.75, -0.42, top - 0.01), (roof + 0.65, 0.42, top + 0.30 + 0.2 * place)
            return [box(low, high, Part.ROOF, Material.MARK, bevel=0.12)]
        case "roof sign":
            low, high = (roof - 0.12, place - 0.30, top - 0.01), (roof + 0.12, place + 0.30, top + 0.18)
            return [box(low, high, Part.ROOF, Material.MARK, bevel=0.03)]
        case "dent":
            dent = _stick(shape.side, ellipse((door + place, 0.5), (0.30, 0.22), 9), Part.MARK, Material.ACCENT)
            return [dent if place > 0 else mirror(dent)]
        case "rear sticker" if shape.hull >= shape.length:
            flat = _rect(0.16 + place, 0.44 + place, 0.50, 0.66)
            return _one(shape.rear, flat, Part.MARK, Material.MARK, 0.03)
        case "dirt":
            a, b = shape.axles[1] + shape.arch + 0.05, shape.axles[0] - shape.arch - 0.05
            flat = _rect(a, b, 0.06, 0.26 + 0.2 * place, (1, 4))
            return _pair(shape.side, flat, Part.MARK, Material.ACCENT, 0.008)
    return []
