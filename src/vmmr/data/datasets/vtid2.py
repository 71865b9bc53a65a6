"""VTID2 (Vehicle Type Image Dataset, version 2): 4,356 crops of five body styles from gate cameras, CC BY 4.0.

Boonsirisumpun and Surinta, Mendeley Data, doi 10.17632/htsngg9tpc.

Folders Hatchback, Other, Pickup, SUV and Seden (so spelt; here Sedan), in `root` or one folder below. There is no
make, no split, and there are near-duplicates: split by duplicate group.
"""

from __future__ import annotations

from pathlib import Path

from vmmr.data.datasets.annotations import locate
from vmmr.data.datasets.class_folders import image_files
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError

__all__ = ["BODIES", "read"]

BODIES = {
    "hatchback": "Hatchback",
    "other": "Other",
    "pickup": "Pickup",
    "suv": "SUV",
    "seden": "Sedan",
    "sedan": "Sedan",
}
"""Folder name in small letters -> class."""


def read(root: Path | str, *, strict: bool = False) -> Manifest:
    """Every image of the five folders. `strict` refuses other folders with images, and a class without any."""
    inner = sorted(place.name for place in Path(root).iterdir() if place.is_dir()) if Path(root).is_dir() else []
    root = locate(root, ("Seden", "Sedan"), inner, name="VTID2")
    files = image_files(root)
    models = [BODIES.get(file.parts[0].lower(), "") if len(file.parts) == 2 else "" for file in files]
    stray = [str(file) for file, model in zip(files, models, strict=True) if not model]
    absent = sorted(set(BODIES.values()) - set(models))
    if strict and (stray or absent):
        raise ManifestError("not the five folders of VTID2", got=f"missing {absent}, besides them {stray[:3]}")
    kept = [(str(file), model) for file, model in zip(files, models, strict=True) if model]
    if not kept:
        raise ManifestError("no images of VTID2", got=root)
    columns = {name: [row[i] for row in kept] for i, name in enumerate(("path", "model"))}
    return Manifest.from_columns({**columns, "body": ["" if m == "Other" else m for m in columns["model"]]}, root)
