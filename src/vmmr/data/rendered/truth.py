"""What is true of a rendered image: part ids, viewpoint sectors and the row of facts that goes with each picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import IntEnum

import pyarrow as pa

__all__ = ["MANIFEST_COLUMNS", "VIEWPOINTS", "Part", "Truth", "truth_schema", "viewpoint_of"]

VIEWPOINTS = ("front", "front-left", "left", "rear-left", "rear", "rear-right", "right", "front-right")
"""The eight sectors of 45 degrees, counter-clockwise around the vehicle from above; left is left as the driver sits."""

MANIFEST_COLUMNS = (
    "path", "make", "model", "year", "body", "viewpoint", "left", "top", "right", "bottom",
    "split", "group", "vehicle_id", "camera_id",
)  # fmt: skip


class Part(IntEnum):
    """The values of a part mask."""

    BACKGROUND = 0
    BODY = 1
    GLASS = 2
    WHEEL = 3
    HEAD_LAMP = 4
    TAIL_LAMP = 5
    GRILLE = 6
    BUMPER = 7
    PLATE = 8
    MIRROR = 9
    ROOF = 10
    BADGE = 11
    TRIM = 12
    CARGO = 13
    CHASSIS = 14
    MARK = 15


def viewpoint_of(azimuth: float) -> str:
    """The sector that holds an azimuth in degrees: 0 looks at the front, 90 at the left side.

    >>> viewpoint_of(0.0), viewpoint_of(-23.0), viewpoint_of(450.0)
    ('front', 'front-right', 'left')
    """
    return VIEWPOINTS[int((azimuth + 22.5) % 360.0 // 45.0)]


@dataclass(frozen=True)
class Truth:
    """All that is known of one picture. Lengths in metres, angles in degrees, times in seconds, boxes in pixels.

    `left, top, right, bottom` bound the visible vehicle, 0-based and half-open; they are None when it is out of frame.
    `azimuth` and `elevation` say from where the camera sees the vehicle, in the vehicle's own frame. `x`, `y` and
    `heading` (counter-clockwise from the world's x axis) place it on the ground. The trajectory columns are None for
    single pictures. `pixels` counts the visible pixels of every `Part`, the background first.
    """

    make: str
    model: str
    year: int
    body: str
    colour: str
    viewpoint: str
    azimuth: float
    elevation: float
    vehicle_id: str
    camera_id: str
    left: int | None
    top: int | None
    right: int | None
    bottom: int | None
    pixels: tuple[int, ...]
    marks: str
    light: str
    background: str
    seed: int
    x: float
    y: float
    heading: float
    trajectory_id: str | None = None
    frame: int | None = None
    time: float | None = None

    def row(self) -> dict[str, object]:
        """The flat form: one column a field, `pixels` spread over `pixels_body`, `pixels_glass` and so on."""
        row: dict[str, object] = {k: v for k, v in asdict(self).items() if k != "pixels"}
        row |= {f"pixels_{part.name.lower()}": self.pixels[part] for part in Part}
        return row


def truth_schema() -> pa.Schema:
    """The columns of a truth table: path, split and group, then those of `Truth.row`."""
    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    columns = {"path": pa.string(), "split": pa.string(), "group": pa.string()}
    columns |= {f.name: kinds[str(f.type).split(" ")[0]] for f in fields(Truth) if f.name != "pixels"}
    return pa.schema(columns | {f"pixels_{part.name.lower()}": pa.int64() for part in Part})
