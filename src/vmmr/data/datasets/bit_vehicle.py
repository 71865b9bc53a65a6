"""BIT-Vehicle: six body styles in traffic camera images, about 9,850 images, 10,053 vehicles, very uneven.

Dong et al., Vehicle Type Classification Using a Semisupervised Convolutional Neural Network, IEEE T-ITS 2015.

`VehicleInfo.mat` and the images, in `root` or one folder below. A row is a vehicle: an image with two has two rows.
There is no make and no official split; the category is the model. Rows of one image share a `group`.
"""

from __future__ import annotations

from pathlib import Path

from vmmr.data.datasets.annotations import cells, field, half_open, locate, present, read_mat, text
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError

__all__ = ["listed", "read"]

_FILE = "VehicleInfo.mat"


def read(root: Path | str, *, strict: bool = False) -> Manifest:
    """Every vehicle. Missing images are counted and left out, or refused where `strict`."""
    return present(listed(root), strict=strict, name="BIT-Vehicle")


def listed(root: Path | str) -> Manifest:
    """The rows of `VehicleInfo.mat`, whether the images are there or not."""
    inner = sorted(place.name for place in Path(root).iterdir() if place.is_dir()) if Path(root).is_dir() else []
    root = locate(root, (_FILE,), inner, name="BIT-Vehicle")
    names = ("path", "model", "group", "left", "top", "right", "bottom")
    columns: dict[str, list[object]] = {name: [] for name in names}
    below = ""
    # As many as there are: the README speaks of 10,400, the paper of 9,850.
    for image in cells(field(read_mat(root / _FILE), "VehicleInfo", _FILE)):
        name = text(field(image, "name", _FILE))
        if not columns["path"] and not (root / name).exists():
            below = next((f"{place.parent.name}/" for place in root.glob(f"*/{name}")), "")
        for vehicle in cells(field(image, "vehicles", _FILE)):
            box = half_open(*(field(vehicle, side, _FILE) for side in ("left", "top", "right", "bottom")))
            row = (below + name, text(field(vehicle, "category", _FILE)), name, *box)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    if not columns["path"]:
        raise ManifestError(f"{_FILE} holds no vehicle", got=root)
    return Manifest.from_columns({**columns, "body": columns["model"]}, root)
