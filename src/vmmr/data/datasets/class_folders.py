"""Images in folders named after their class: the layout of torchvision's ImageFolder and its relatives.

Understood, with or without `train`, `val` (`valid`, `validation`) and `test` at the top:

    Audi S4 Sedan 2007/*.jpg          a whole name: make and year where it reads like one of Stanford Cars
    023_Audi_S4_Sedan_2007/*.jpg      the same with a leading number and underscores
    Audi__S4 Sedan__2007/*.jpg        make, model and, if given, year between double underscores
    Audi/S4 Sedan/2007/*.jpg          nested make / model / year, or make / model
    sports_car/*.jpg                  any other name is the model; the make stays unknown
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError
from vmmr.taxonomy import VehicleClass, parse_stanford_name

__all__ = ["IMAGE_SUFFIXES", "image_files", "parse_folder", "read"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""What the decoder opens, lower case; capitals are the same."""

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_YEAR = re.compile(r"(19|20)\d\d|unknown", re.IGNORECASE)


def image_files(root: Path) -> list[PurePosixPath]:
    """Every image below `root`, relative to it, sorted. Hidden files and folders are passed over."""
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith((".", "__MACOSX"))]
        where = Path(folder).relative_to(root)
        found += [where / name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
    return sorted(PurePosixPath(path) for path in found)


def parse_folder(parts: tuple[str, ...]) -> VehicleClass:
    """The class that the folders between split and file name spell.

    >>> parse_folder(("023_Audi_S4_Sedan_2007",)).name
    'Audi S4 Sedan 2007'
    >>> parse_folder(("Audi", "A4", "2012"))
    VehicleClass(make='Audi', model='A4', year=2012, body=None)

    Raises ManifestError where the folders are too deep to be make / model / year.
    """
    if len(parts) == 1 and "__" in parts[0]:
        parts = tuple(parts[0].split("__"))
    match parts:
        case (name,):
            return _parse_name(name)
        case (make, model):
            return VehicleClass(make, model)
        case (make, model, year) if _YEAR.fullmatch(year):
            return VehicleClass(make, model, int(year) if year.isdecimal() else None)
    raise ManifestError("folders spell no class", got="/".join(parts), do="use class, make/model or make/model/year")


def read(root: Path | str, *, strict: bool = False) -> Manifest:
    """The images below `root` by class folder; the taxonomy is sorted by make, model and year.

    `strict` refuses images that lie in no class folder; otherwise they are passed over. Raises ManifestError where
    there is no such folder or no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise ManifestError("no such folder", got=root)
    files = image_files(root)
    # A folder called "test" is a split only where nothing but splits stands beside it.
    has_splits = bool(files) and all(file.parts[0].lower() in _SPLITS for file in files)
    columns: dict[str, list[object]] = {name: [] for name in ("path", "make", "model", "year", "body", "split")}
    kinds: dict[tuple[str, ...], VehicleClass] = {}
    stray = []
    for file in files:
        split, *parts = file.parts[:-1] if has_splits else ("", *file.parts[:-1])
        if not parts:
            stray.append(str(file))
            continue
        folders = tuple(parts)
        kind = kinds.get(folders) or kinds.setdefault(folders, parse_folder(folders))
        row = (str(file), kind.make, kind.model, kind.year, kind.body, _SPLITS[split.lower()] if split else "")
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    if stray and (strict or not columns["path"]):
        raise ManifestError("images outside of class folders", got=f"{len(stray)}, such as {stray[0]}")
    if not columns["path"]:
        raise ManifestError("no images", got=root, do=f"files ending in {', '.join(IMAGE_SUFFIXES)} in class folders")
    return Manifest.from_columns(columns, root)


def _parse_name(folder: str) -> VehicleClass:
    numbered = re.fullmatch(r"\d{1,4}[_. -](.+)", folder)
    name = (numbered[1] if numbered else folder).replace("_", " ")
    try:
        return parse_stanford_name(name)
    except ManifestError:
        # The folder's own spelling: nothing is known about it that would allow to change it.
        return VehicleClass("", folder)
