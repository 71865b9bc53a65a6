"""CompCars, web-nature: 431 models of 75 makes in the official classification split (16,016 train, 14,939 test).

Yang et al., A Large-Scale Car Dataset for Fine-Grained Categorization and Verification, CVPR 2015.

In `root` or its folder `data`:

    image/<make>/<model>/<year>/<name>.jpg         ids from 1, with gaps; the year may be "unknown"
    label/<make>/<model>/<year>/<name>.txt         viewpoint, number of boxes (not the body), "x1 y1 x2 y2"
    train_test_split/classification/{train,test}.txt
    misc/make_model_name.mat                       make_names, model_names: cells by id - 1; some models are empty
    misc/attributes.txt, misc/car_type.mat         body by model id; optional

The classes are models, as in the paper: labels follow the sorted model ids of the training list. `years=True` makes
each model year a class of its own.
"""

from __future__ import annotations

from pathlib import Path

from vmmr.data.datasets.annotations import (
    cells,
    distinct_models,
    field,
    half_open,
    locate,
    present,
    read_lines,
    read_mat,
    text,
)
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError
from vmmr.taxonomy import Taxonomy, VehicleClass

__all__ = ["VIEWPOINTS", "listed", "read"]

VIEWPOINTS = {-1: "", 1: "front", 2: "rear", 3: "side", 4: "front-side", 5: "rear-side"}
"""The code in the first line of a label file."""


def read(root: Path | str, *, strict: bool = False, years: bool = False) -> Manifest:
    """The official classification split. Missing images are counted and left out, or refused where `strict`."""
    return present(listed(root, strict=strict, years=years), strict=strict, name="CompCars (web)")


def listed(root: Path | str, *, strict: bool = False, years: bool = False) -> Manifest:
    """The rows of the official lists, whether the images are there or not; `strict` refuses missing label files."""
    root = locate(root, ("misc/make_model_name.mat",), ("data",), name="web part of CompCars")
    rows = []
    for split in ("train", "test"):
        for line in read_lines(root / f"train_test_split/classification/{split}.txt"):
            parts = line.split("/")
            if len(parts) != 4 or not (parts[0].isdecimal() and parts[1].isdecimal()):
                raise ManifestError(f"{split}.txt needs lines make/model/year/name.jpg", got=line)
            rows.append((line, int(parts[0]), int(parts[1]), parts[2], split))
    names, bodies = _names(root, {(row[2], row[1]) for row in rows}), _bodies(root)
    views = [_label(root / "label" / Path(row[0]).with_suffix(".txt"), strict=strict) for row in rows]
    spell = [int(row[3]) if years and row[3].isdecimal() and len(row[3]) == 4 else None for row in rows]
    manifest = Manifest.from_columns(
        {
            "path": [f"image/{row[0]}" for row in rows],
            "make": [names[row[2]][0] for row in rows],
            "model": [names[row[2]][1] for row in rows],
            "year": spell,
            "body": [bodies.get(row[2], "") for row in rows],
            "viewpoint": [view for view, _ in views],
            **{name: [box[i] for _, box in views] for i, name in enumerate(("left", "top", "right", "bottom"))},
            "split": [row[4] for row in rows],
        },
        root,
    )
    # Models that only the test list has come last: the labels of the training list stay 0..430.
    keys = sorted({(row[4] != "train", row[2], year or 0) for row, year in zip(rows, spell, strict=True)})
    kinds = dict.fromkeys((model, year or None) for _, model, year in keys)
    return manifest.with_taxonomy(
        Taxonomy(tuple(VehicleClass(*names[model], year, bodies.get(model) or None) for model, year in kinds))
    )


def _names(root: Path, ids: set[tuple[int, int]]) -> dict[int, tuple[str, str]]:
    mat = read_mat(root / "misc/make_model_name.mat")
    makes, models = (cells(field(mat, name, "make_model_name.mat")) for name in ("make_names", "model_names"))
    for model, make in ids:
        if not (1 <= make <= len(makes) and 1 <= model <= len(models)):
            raise ManifestError(
                "make_model_name.mat does not know an id of the lists", got=f"make {make} model {model}"
            )
    # An empty make would hide that there is one.
    return distinct_models(
        (model, text(makes[make - 1]) or f"make {make}", text(models[model - 1])) for model, make in sorted(ids)
    )


def _bodies(root: Path) -> dict[int, str]:
    """Model id -> body, without the models of type 0 (unknown); empty where the files are not there."""
    if not (root / "misc/car_type.mat").is_file() or not (root / "misc/attributes.txt").is_file():
        return {}
    types = [text(cell) for cell in cells(field(read_mat(root / "misc/car_type.mat"), "types", "car_type.mat"))]
    header, *lines = read_lines(root / "misc/attributes.txt")
    if header.split()[:1] != ["model_id"] or header.split()[-1] != "type":
        raise ManifestError("attributes.txt must begin with a line 'model_id ... type'", got=header)
    pairs = [(int(words[0]), int(words[-1])) for words in map(str.split, lines)]
    return {model: types[kind - 1] for model, kind in pairs if 1 <= kind <= len(types)}


def _label(path: Path, *, strict: bool) -> tuple[str, tuple[int | None, ...]]:
    """Viewpoint and box of a label file."""
    if not path.is_file() and not strict:
        return "", (None,) * 4
    lines = read_lines(path)
    try:
        viewpoint, box = VIEWPOINTS[int(lines[0])], half_open(*lines[2].split())
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise ManifestError(f"{path} is no label file", got=lines, do="viewpoint, 1, 'x1 y1 x2 y2'") from error
    return viewpoint, box
