"""Parametric bodies: proportions in the side view, lofted into a hull with wheel arches and a cabin with windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from vmmr.data.rendered.mesh import Floats, Material, Mesh, box, join, mirror, revolve, surface
from vmmr.data.rendered.truth import Part

__all__ = ["BODIES", "Shape", "cabin", "cargo", "hull", "wheels"]

# The hull's section: share of the height from sill to shoulder, width, and how far the nose and tail stand back (m).
_RISE = np.array([0.0, 0.10, 0.22, 0.34, 0.40, 0.62, 0.82, 0.91, 0.97, 1.0], np.float32)
_WIDTH = np.array([0.93, 0.965, 0.99, 1.0, 1.0, 1.0, 0.985, 0.97, 0.945, 0.915], np.float32)
_NOSE = np.array([0.07, 0.02, 0.0, 0.0, 0.03, 0.05, 0.09, 0.13, 0.20, 0.30], np.float32)
_TAIL = np.array([0.09, 0.03, 0.0, 0.0, 0.03, 0.045, 0.06, 0.07, 0.09, 0.13], np.float32)


@dataclass(frozen=True)
class Shape:
    """Proportions in metres; distances run from the nose backwards, heights from the ground up.

    `nose`, `tail`: height of the hull's edge at both ends. `cowl`, `back`: (distance, height) where windscreen and rear
    window meet the hull. `roof`: distances of the roof's ends. `pillars`: distances of the pillars between the side
    windows; `glazed` is where the side glass ends. `hull`: length of the hull (a truck's is its cab). `corner`:
    depth of the rounded corners in plan. `lean`: factor on how far the nose stands back at its top.
    """

    length: float
    width: float
    height: float
    wheelbase: float
    overhang: float
    wheel: float
    clearance: float
    nose: float
    cowl: tuple[float, float]
    roof: tuple[float, float]
    back: tuple[float, float]
    tail: float
    pillars: tuple[float, ...]
    glazed: float
    hull: float
    corner: float = 0.45
    lean: float = 1.0
    crown: float = 0.06
    roof_width: float = 0.76
    bed: bool = False

    @property
    def half(self) -> float:
        """Half the width."""
        return self.width / 2

    @property
    def axles(self) -> tuple[float, ...]:
        """x of the wheels."""
        front = self.length / 2 - self.overhang
        return (front, front - self.wheelbase)

    def varied(self, style: np.ndarray[Any, Any], rng: np.random.Generator) -> Shape:
        """Another model of this body, moved by a make's `style` [4] in [-1, 1] and by the model's own chance."""

        def chance(amount: float) -> float:
            return float(rng.uniform(-amount, amount))

        long = 1 + 0.04 * style[0] + chance(0.05)
        high = 1 + 0.03 * style[1] + chance(0.035)
        rake = 0.14 * style[2] + chance(0.08)
        rise = 0.04 * style[3] + chance(0.02)
        span = self.roof[1] - self.roof[0]
        return replace(
            self,
            length=self.length * long,
            hull=self.hull * long,
            width=self.width * (1 + chance(0.02)),
            height=self.height * high,
            wheelbase=self.wheelbase * long * (1 + chance(0.015)),
            overhang=self.overhang * long,
            wheel=self.wheel * (1 + chance(0.05)),
            nose=self.nose * high * (1 + chance(0.03)),
            cowl=(self.cowl[0] * long, self.cowl[1] * high),
            roof=(self.roof[0] * long + rake * 0.5, self.roof[1] * long + chance(0.06) * span),
            back=(self.back[0] * long, self.back[1] * high * (1 + rise)),
            tail=self.tail * high * (1 + rise),
            pillars=tuple(p * long for p in self.pillars),
            glazed=self.glazed * long,
            corner=self.corner * (1 + chance(0.15)),
            roof_width=self.roof_width + chance(0.02),
        )

    def shoulder(self, x: Floats) -> Floats:
        """Height of the hull's upper edge at x."""
        d = [0.0, 0.25 * self.corner, self.cowl[0], self.back[0], self.hull]
        z = [self.nose - 0.05, self.nose, self.cowl[1], self.back[1], self.tail]
        return np.asarray(np.interp(self.length / 2 - x, d, z), np.float32)

    def outline(self, width: Floats, nose: Floats, tail: Floats) -> tuple[Floats, Floats]:
        """x and y [R, C] of the left half in plan, from the middle of the nose to the middle of the tail.

        width, nose, tail: [R, 1] half width and set-back of nose and tail of each row.
        """
        front, rear, c = self.length / 2, self.length / 2 - self.hull, self.corner
        turn = np.linspace(np.pi / 2, 0, 9, dtype=np.float32)
        depth, reach = np.sin(turn) ** (2 / 3.2), np.abs(np.cos(turn)) ** (2 / 3.2)
        quarter = np.cos(np.linspace(0, np.pi / 2, 4))
        arches = [a + self.arch * s * t for a in self.axles for s in (-1, 1) for t in quarter]
        edges = [a + s * (self.arch + 0.002) for a in self.axles for s in (-1, 1)]
        bends = [self.cowl[0], self.back[0], *((self.back[0] + 0.12,) if self.bed else ())]
        lines = [front - p for p in (*bends, *np.linspace(0, self.hull, 5))]
        side = np.unique(np.array([*arches, *edges, *lines], np.float32))[::-1]
        side = side[(side < front - c - 0.02) & (side > rear + c + 0.02)]
        # Rows that stand back further than the first stations push these together instead of folding over them.
        flank = np.clip(side, rear + tail + c, front - nose - c)
        x = np.concatenate(
            [
                np.broadcast_to(front - nose - c + c * depth, (len(width), 9)),
                flank,
                np.broadcast_to(rear + tail + c - c * depth[::-1], (len(width), 9)),
            ],
            axis=1,
        )
        y = np.concatenate([width * reach, np.repeat(width, len(side), 1), width * reach[::-1]], axis=1)
        return x.astype(np.float32), y.astype(np.float32)

    @property
    def arch(self) -> float:
        """Radius of the wheel arches."""
        return self.wheel * 1.14

    def front(self, points: Floats, lift: float = 0.012) -> Floats:
        """Put flat (y, z) points [..., 2] on the nose; z runs over sill (0) to shoulder (1), y over the half width."""
        return self._end(points, lift, self.length / 2, _NOSE * self.lean, 1.0, self.nose)

    def rear(self, points: Floats, lift: float = 0.012) -> Floats:
        """Put flat (y, z) points [..., 2] on the tail, as `front` does."""
        return self._end(points, lift, self.length / 2 - self.hull, _TAIL, -1.0, self.tail)

    def _end(self, points: Floats, lift: float, x: float, back: Floats, sign: float, top: float) -> Floats:
        reach, rise = np.abs(points[..., 0]).clip(0, 0.995), points[..., 1].clip(0, 1)
        depth = (1 - reach**3.2) ** (1 / 3.2)
        width = self.half * np.interp(rise, _RISE, _WIDTH)
        base = x - sign * (np.interp(rise, _RISE, back) + self.corner * (1 - depth) - lift)
        z = self.clearance + rise * (top - 0.03 - self.clearance)
        y = np.sign(points[..., 0]) * (reach * width + lift * reach**6)
        return np.stack([base, y, z], -1).astype(np.float32)

    def side(self, points: Floats, lift: float = 0.012) -> Floats:
        """Put flat (x, z) points [..., 2], metres and share of the shoulder's height, on the left flank."""
        x, rise = points[..., 0], points[..., 1].clip(0, 1)
        y = self.half * np.interp(rise, _RISE, _WIDTH) + lift
        return np.stack([x, y, self.clearance + rise * (self.shoulder(x) - self.clearance)], -1).astype(np.float32)

    def bonnet(self, points: Floats, lift: float = 0.012) -> Floats:
        """Put flat (x, y) points [..., 2] in metres on the bonnet."""
        x, edge = points[..., 0], 0.915 * self.half
        inward = 1 - np.abs(points[..., 1]).clip(0, edge) / edge
        z = self.shoulder(x) + self.crown * (2 * inward - inward**2) + 0.012 + lift
        return np.stack([x, points[..., 1], z], -1).astype(np.float32)


def hull(shape: Shape, *, dark_bumper: bool) -> Mesh:
    """The lower body: flanks with wheel arches, nose and tail with bumpers, bonnet and deck."""
    rise, width = _RISE[:, None], _WIDTH[:, None] * shape.half
    x, y = shape.outline(width, _NOSE[:, None] * shape.lean, _TAIL[:, None])
    top = shape.shoulder(x)
    z = shape.clearance + rise * (top - shape.clearance)
    arch = np.zeros_like(z)
    for axle in shape.axles:
        inside = (np.abs(x - axle) < shape.arch) & (y > 0.6 * shape.half)
        lift = shape.wheel + np.sqrt(np.maximum(shape.arch**2 - (x - axle) ** 2, 0))
        arch = np.where(inside, np.minimum(lift, top - 0.04), arch)
    z = np.maximum(z, arch)
    y = np.where(arch > 0, np.interp((z - shape.clearance) / (top - shape.clearance), _RISE, _WIDTH) * shape.half, y)
    inward = np.array([0.03, 0.12, 0.4, 1.0], np.float32)[:, None]
    bulge = shape.crown * (2 * inward - inward**2) + 0.012
    cap = np.stack(
        [
            np.broadcast_to(x[-1], (len(inward), x.shape[1])),
            y[-1] * (1 - inward),
            z[-1] + bulge * np.minimum(y[-1] / 0.4, 1),
        ],
        -1,
    )
    grid = np.concatenate([np.stack([x, y, z], -1), cap.astype(np.float32)])
    cells = (grid.shape[0] - 1, grid.shape[1] - 1)
    part = np.full(cells, Part.BODY)
    material = np.full(cells, Material.PAINT)
    for columns in (slice(0, 8), slice(cells[1] - 8, None)):
        part[:4, columns] = Part.BUMPER
        material[: 4 if dark_bumper else 1, columns] = Material.PLASTIC
    material[0, 8:-8] = Material.PLASTIC
    middle = (x[0, 1:] + x[0, :-1]) / 2
    keep = np.ones(cells, bool)
    # Nobody sees the deck below the cabin.
    covered = shape.length / 2 - np.array([shape.cowl[0] + 0.5, shape.back[0] - 0.5])
    keep[-3:] = (x[0, :-1] > covered[0]) | (x[0, 1:] < covered[1])
    if shape.bed:
        start, end = shape.length / 2 - shape.back[0] - 0.12, shape.length / 2 - shape.hull + 0.14
        keep[-3:] &= ~((middle < start + 0.01) & (middle > end))
    left = surface(grid, part, material, inside=((shape.length - shape.hull) / 2, 0, 0.5 * shape.nose), keep=keep)
    parts = [left, mirror(left)]
    if shape.bed:
        w, floor = shape.half * 0.8, shape.clearance + 0.42
        corners = [(start, w), (end, w), (end, -w), (start, -w), (start, w)]
        walls = [[(*c, h + 0.02) for c in corners] for h in (floor, shape.back[1])]
        bottom = [[(start, w, floor), (end, w, floor)], [(start, -w, floor), (end, -w, floor)]]
        above = ((start + end) / 2, 0, 9.0)
        parts += [
            surface(bottom, Part.CARGO, Material.PLASTIC, inside=(0, 0, -9)),
            *(_inward([[row[i], row[i + 1]] for row in walls], above) for i in range(4)),
        ]
    return join(parts)


def _inward(points: Any, middle: tuple[float, float, float]) -> Mesh:
    """A wall that faces the point `middle` at the wall's own height."""
    wall = np.asarray(points, np.float32)
    centre = wall.mean((0, 1))
    away = 2 * centre - np.array([middle[0], middle[1], centre[2]], np.float32)
    return surface(wall, Part.CARGO, Material.PLASTIC, inside=away)


def cabin(shape: Shape) -> Mesh:
    """The upper body: pillars, roof and glass, lofted over rings from the belt line to the roof."""
    front, c = shape.length / 2, min(shape.corner, 0.40)
    h = np.array([-0.12, 0.0, 0.09, 0.34, 0.62, 0.88, 0.95, 1.0], np.float32)[:, None]
    roof = shape.height - 0.05
    bow = 0.06 * h * (1 - h)
    ahead = front - (shape.cowl[0] + h * (shape.roof[0] - shape.cowl[0])) + bow
    behind = front - (shape.back[0] + h * (shape.roof[1] - shape.back[0])) - bow
    upright = shape.height > 2.4
    width = shape.half * (0.915 + h * (shape.roof_width - 0.915)) + 0.05 * np.clip(h, 0, 1) * (1 - h)
    width = width - 0.03 * np.clip((h - 0.88) / 0.12, 0, 1) ** 2
    turn = np.linspace(np.pi / 2, 0, 8, dtype=np.float32)
    power = 2 / 4.0 if upright else 2 / 2.8
    depth, reach = np.sin(turn) ** power, np.abs(np.cos(turn)) ** power
    # Pillars between windows stand upright; the first and last edges lean with the two screens.
    a, b = ahead - c - 0.05, behind + c + 0.03
    half_pillar = 0.035
    inner = [front - p + s * half_pillar for p in shape.pillars for s in (1, -1)]
    last = np.maximum(b, front - shape.glazed)
    edges = [a, *(np.full(h.shape, i) for i in inner), last]
    stations, glass = [ahead - c], [False]
    for i, (u, v) in enumerate(pairwise(edges)):
        window = i % 2 == 0
        steps = 3 if window else 1
        stations += [np.minimum(u, a) + (np.minimum(v, a) - np.minimum(u, a)) * k / steps for k in range(steps)]
        glass += [window] * steps
    stations += [last, *(last + (b - last) * k / 2 for k in (1, 2))]
    glass += [False, False]
    side = np.concatenate(stations, 1)
    base_front = front - shape.cowl[0] if shape.cowl[0] > 0.5 else front
    base_z = shape.cowl[1] + (shape.back[1] - shape.cowl[1]) * (base_front - side) / (shape.back[0] - shape.cowl[0])
    x = np.concatenate([ahead - c + c * depth, side, behind + c - c * depth[::-1]], 1)
    y = np.concatenate([width * reach, np.repeat(width, side.shape[1], 1), width * reach[::-1]], 1)
    ends = (shape.cowl[1], shape.back[1])
    base = np.concatenate([np.full((len(h), 8), ends[0]), base_z.clip(min(ends)), np.full((len(h), 8), ends[1])], 1)
    z = base + h * (roof - base)
    inward = np.array([0.06, 0.2, 0.5, 1.0], np.float32)[:, None]
    centre = (ahead[-1] + behind[-1]) / 2
    rise = z[-1] + 0.055 * (2 * inward - inward**2)
    cap = np.stack([centre + (x[-1] - centre) * (1 - inward), y[-1] * (1 - inward), rise], -1)
    grid = np.concatenate([np.stack([x, y, z], -1), cap]).astype(np.float32)
    cells = (grid.shape[0] - 1, grid.shape[1] - 1)
    is_glass = np.zeros(cells, bool)
    band = slice(2, 5)
    columns = np.array([True] * 6 + [False] * 2 + glass + [False] * 2 + [True] * 6)[: cells[1]]
    columns[6:8] = False
    is_glass[band] = columns
    is_glass[:2, :6] |= not upright
    return _both(
        surface(
            grid,
            np.where(is_glass, Part.GLASS, Part.BODY),
            np.where(is_glass, Material.GLASS, Material.PAINT),
            inside=((ahead[0, 0] + behind[0, 0]) / 2, 0, shape.cowl[1] - 0.3),
        )
    )


def cargo(shape: Shape) -> list[Mesh]:
    """A truck's load box and frame; nothing for the other bodies."""
    if shape.hull >= shape.length:
        return []
    front, rear = shape.length / 2 - shape.hull - 0.18, -shape.length / 2
    w = shape.half
    return [
        box((rear, -w * 1.02, 1.0), (front, w * 1.02, shape.height + 0.35), Part.CARGO, Material.CARGO, bevel=0.03),
        box((rear, -w * 0.45, 0.55), (front + 0.6, w * 0.45, 1.0), Part.CHASSIS, Material.DARK),
        box((rear, -w * 0.92, 0.42), (rear + 0.12, w * 0.92, 0.62), Part.BUMPER, Material.PLASTIC),
        *(
            box((-1.0, s * w * 0.72 - 0.2, 0.45), (0.6, s * w * 0.72 + 0.2, 0.95), Part.CHASSIS, Material.PLASTIC)
            for s in (-1, 1)
        ),
    ]


def wheels(shape: Shape, *, spokes: int, rim: float) -> Mesh:
    """Four wheels with `spokes` spokes on rims of share `rim` of the radius, and the dark wells around them."""
    r, w = shape.wheel, 0.115 + 0.25 * (shape.wheel - 0.3)
    edge = shape.half * 0.985
    hub = r * rim
    profile = [
        (-w, hub),
        (-w, r),
        (w * 0.6, r),
        (w, r * 0.94),
        (w, hub),
        (w * 0.55, hub * 0.93),
        (w * 0.5, 0.0),
    ]
    kinds = [Material.RUBBER] * 4 + [Material.RIM, Material.DARK]
    parts = []
    for x in shape.axles:
        middle = np.array([x, edge - w, r], np.float32)
        parts.append(revolve(middle, profile, Part.WHEEL, kinds))
        start, end = np.float32(hub * 0.1), np.float32(hub * 0.97)
        for k in range(spokes):
            t = 2 * np.pi * (k + 0.25) / spokes
            along = np.array([np.cos(t), 0, np.sin(t)], np.float32)
            across = np.array([-np.sin(t), 0, np.cos(t)], np.float32) * hub * min(0.8 / spokes, 0.13)
            hung = middle + np.array([0, w * 0.8, 0], np.float32)
            face = [[hung + along * s + across * side for s in (start, end)] for side in (-1, 1)]
            parts.append(surface(face, Part.WHEEL, Material.RIM, inside=middle - (0, 1, 0)))
        cap = [(w * 0.5, hub * 0.2), (w * 0.85, hub * 0.2), (w * 0.9, 0.0)]
        parts.append(revolve(middle, cap, Part.WHEEL, Material.RIM, corners=8))
        top = min(r + shape.arch, shape.nose - 0.02)
        a, b = x - shape.arch * 0.98, x + shape.arch * 0.98
        parts.append(box((a, 0, shape.clearance + 0.05), (b, edge - 2.3 * w, top), Part.CHASSIS, Material.DARK))
    rear = shape.length / 2 - shape.hull
    floor = box(
        (rear + 0.3, 0, shape.clearance + 0.02), (shape.length / 2 - 0.4, shape.half * 0.6, shape.clearance + 0.2),
        Part.CHASSIS, Material.DARK,
    )  # fmt: skip
    return _both(join([*parts, floor]))


def _both(left: Mesh) -> Mesh:
    return join([left, mirror(left)])


def _shape(**sizes: Any) -> Shape:
    return Shape(**{"hull": sizes["length"], **sizes})


BODIES: dict[str, Shape] = {
    "sedan": _shape(
        length=4.70, width=1.82, height=1.46, wheelbase=2.76, overhang=0.88, wheel=0.33, clearance=0.20, nose=0.74,
        cowl=(1.32, 0.95), roof=(2.12, 3.38), back=(4.08, 1.03), tail=1.00, pillars=(2.62,), glazed=3.70,
    ),
    "hatch": _shape(
        length=4.05, width=1.76, height=1.50, wheelbase=2.56, overhang=0.80, wheel=0.32, clearance=0.20, nose=0.78,
        cowl=(1.05, 0.97), roof=(1.78, 3.55), back=(3.98, 1.04), tail=1.00, pillars=(2.30,), glazed=3.32,
    ),
    "suv": _shape(
        length=4.62, width=1.90, height=1.76, wheelbase=2.72, overhang=0.88, wheel=0.38, clearance=0.28, nose=0.98,
        cowl=(1.28, 1.16), roof=(1.98, 4.22), back=(4.54, 1.18), tail=1.14, pillars=(2.55, 3.42), glazed=4.15,
        roof_width=0.78,
    ),
    "pickup": _shape(
        length=5.40, width=1.94, height=1.84, wheelbase=3.30, overhang=0.95, wheel=0.40, clearance=0.34, nose=1.04,
        cowl=(1.45, 1.20), roof=(2.05, 3.28), back=(3.55, 1.22), tail=1.20, pillars=(2.66,), glazed=3.22, bed=True,
        roof_width=0.78,
    ),
    "van": _shape(
        length=5.05, width=1.96, height=2.12, wheelbase=3.10, overhang=0.92, wheel=0.35, clearance=0.24, nose=1.00,
        cowl=(0.80, 1.25), roof=(1.62, 4.90), back=(5.02, 1.25), tail=1.22, pillars=(2.20,), glazed=2.20,
        corner=0.40, roof_width=0.82,
    ),
    "bus": _shape(
        length=10.4, width=2.48, height=3.10, wheelbase=5.60, overhang=2.35, wheel=0.50, clearance=0.32, nose=1.22,
        cowl=(0.10, 1.22), roof=(0.42, 10.3), back=(10.36, 1.22), tail=1.22,
        pillars=(1.6, 3.0, 4.4, 5.8, 7.2, 8.6), glazed=9.9, corner=0.32, lean=0.25, roof_width=0.86,
    ),
    "truck": _shape(
        length=7.60, width=2.38, height=2.85, wheelbase=4.50, overhang=1.20, wheel=0.48, clearance=0.42, nose=1.42,
        cowl=(0.10, 1.46), roof=(0.50, 2.0), back=(2.08, 1.46), tail=1.42, pillars=(1.55,), glazed=1.60,
        hull=2.10, corner=0.30, lean=0.3, roof_width=0.84,
    ),
}  # fmt: skip
"""The middle of each body; models vary it by a few per cent."""
