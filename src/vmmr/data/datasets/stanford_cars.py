"""Stanford Cars: 196 classes, 8,144 training and 8,041 test images.

Krause et al., 3D Object Representations for Fine-Grained Categorization, 3dRR 2013.

Layouts understood, in `root` or one folder below (`stanford_cars`, `car_data`, `car_data/car_data`):

    cars_train/ cars_test/ devkit/   the authors' archives, also as torchvision lays them out; the test labels come from
                                     cars_test_annos_withlabels.mat, beside or in devkit/
    car_ims/ cars_annos.mat          the single archive
    {train,test}/<class>/*.jpg       exports; <class> is `class_001`, `001_Make_Model_Year` or the class name itself

Labels follow the ids of the devkit (id 1 has label 0) wherever they are known: from a number in the folder names, or
from cars_meta.mat or cars_annos.mat, in `root`, in a `devkit` folder there, or beside `root`. Only folders with bare
names and no such file are sorted by name. An export cannot write the slash of "Ram C/V Cargo Van Minivan 2012"; here
it comes back.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vmmr.data.datasets.annotations import cells, field, half_open, locate, present, read_mat, text
from vmmr.data.datasets.class_folders import image_files
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError
from vmmr.taxonomy import Taxonomy, VehicleClass, parse_stanford_name

__all__ = ["class_names", "listed", "read"]

_log = logging.getLogger(__name__)
_INNER = ("stanford_cars", "car_data", "car_data/car_data")
_BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_RAM = re.compile(r"^Ram C\W?V\b")


def read(root: Path | str, *, strict: bool = False) -> Manifest:
    """The data set in whichever layout it lies at `root`. Missing images are counted, or refused where `strict`.

    Without the labels of the test images there are no test rows (a warning, or, where `strict`, ManifestError).
    """
    folder = locate(root, ("devkit", "car_ims", "cars_annos.mat", "train"), _INNER, name="Stanford Cars")
    if (folder / "train").is_dir():
        return _folders(folder)
    return present(listed(folder, strict=strict), strict=strict, name="Stanford Cars")


def listed(root: Path | str, *, strict: bool = False) -> Manifest:
    """The rows of the annotation files of `root` (or its `devkit`), whether the images are there or not."""
    root = Path(root)
    names = class_names(root)
    if names is None:
        raise ManifestError("neither cars_meta.mat nor cars_annos.mat", got=root)
    sources: list[tuple[str, Path | None, str]] = [
        ("train", _find(root, "cars_train_annos.mat"), "cars_train"),
        ("test", _find(root, "cars_test_annos_withlabels.mat"), "cars_test"),
    ]
    single = _find(root, "cars_annos.mat")
    if single is not None and (sources[0][1] is None or (root / "car_ims").is_dir()):
        sources = [("", single, "")]
    rows = []
    for split, path, folder in sources:
        if path is None and (split == "train" or strict):
            raise ManifestError(f"no annotations of the {split} images", got=root)
        if path is None:
            _log.warning("Stanford Cars: no cars_test_annos_withlabels.mat, so the test images are left out")
            continue
        records = cells(field(read_mat(path), "annotations", path.name))
        rows += [_row(record, split, folder, len(names), path.name) for record in records]
    kinds = [parse_stanford_name(name) for name in names]
    return _manifest([(path, kinds[number - 1], box, split) for path, number, box, split in rows], root, kinds)


def class_names(root: Path) -> list[str] | None:
    """The names in the order of the devkit ids, from the annotation files in, below or beside `root`."""
    for name in ("cars_meta.mat", "cars_annos.mat"):
        path = _find(root, name)
        if path is not None:
            return [text(cell) for cell in cells(field(read_mat(path), "class_names", name))]
    return None


def _find(root: Path, name: str) -> Path | None:
    places = (root, root / "devkit", root.parent, root.parent / "devkit")
    return next((place / name for place in places if (place / name).is_file()), None)


def _row(
    record: Mapping[str, Any], split: str, folder: str, count: int, source: str
) -> tuple[str, int, tuple[int, ...], str]:
    number = int(field(record, "class", source))
    if not 1 <= number <= count:
        raise ManifestError(f"{source} holds a class id outside of 1..{count}", got=number)
    box = half_open(*(field(record, name, source) for name in _BOX))
    if folder:
        return f"{folder}/{text(field(record, 'fname', source))}", number, box, split
    split = "test" if int(field(record, "test", source)) else "train"
    return text(field(record, "relative_im_path", source)), number, box, split


def _folders(root: Path) -> Manifest:
    names = class_names(root)
    files = image_files(root)
    kinds: dict[str, tuple[int, VehicleClass]] = {}
    rows: list[tuple[str, VehicleClass, tuple[int, ...] | None, str]] = []
    for file in files:
        split, *folder = file.parts[:-1] or ("",)
        if split not in ("train", "val", "test") or len(folder) != 1:
            raise ManifestError("an image outside of train/<class> and test/<class>", got=file)
        if folder[0] not in kinds:
            kinds[folder[0]] = _folder_class(folder[0], names)
        rows.append((str(file), kinds[folder[0]][1], None, split))
    if names is not None:
        return _manifest(rows, root, map(parse_stanford_name, names))
    order = sorted(set(kinds.values()), key=lambda entry: (entry[0], entry[1].name))
    return _manifest(rows, root, (kind for _, kind in order))


def _folder_class(folder: str, names: list[str] | None) -> tuple[int, VehicleClass]:
    """Devkit id (0 where unknown) and class of a folder of an export."""
    if bare := re.fullmatch(r"class_(\d{1,3})", folder):
        if names is None or not 1 <= int(bare[1]) <= len(names):
            do = "put cars_meta.mat beside the folders" if names is None else f"ids go up to {len(names)}"
            raise ManifestError("a numbered class without a name", got=folder, do=do)
        return int(bare[1]), parse_stanford_name(names[int(bare[1]) - 1])
    numbered = re.fullmatch(r"(\d{3})[_. -](.+)", folder)
    name = _RAM.sub("Ram C/V", (numbered[2] if numbered else folder).replace("_", " "))
    if names is not None:
        by_letters = {_letters(known): place for place, known in enumerate(names, 1)}
        if _letters(name) not in by_letters:
            raise ManifestError("a folder is no class of Stanford Cars", got=folder)
        name = names[by_letters[_letters(name)] - 1]
    return int(numbered[1]) if numbered else 0, parse_stanford_name(name)


def _letters(name: str) -> str:
    """What is left of a name however an export wrote its blanks and slashes."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _manifest(
    rows: list[tuple[str, VehicleClass, tuple[int, ...] | None, str]], root: Path, kinds: Iterable[VehicleClass]
) -> Manifest:
    if not rows:
        raise ManifestError("no images of Stanford Cars", got=root)
    box = [row[2] or (None,) * 4 for row in rows]
    return Manifest.from_columns(
        {
            "path": [row[0] for row in rows],
            "make": [row[1].make for row in rows],
            "model": [row[1].model for row in rows],
            "year": [row[1].year for row in rows],
            "body": [row[1].body for row in rows],
            **{name: [corner[i] for corner in box] for i, name in enumerate(("left", "top", "right", "bottom"))},
            "split": [row[3] for row in rows],
        },
        root,
    ).with_taxonomy(Taxonomy(tuple(kinds)))
