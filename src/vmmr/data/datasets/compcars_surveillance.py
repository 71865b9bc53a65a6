"""CompCars, surveillance-nature: 281 models seen from the front, 31,148 training and 13,333 test images.

Yang et al., A Large-Scale Car Dataset for Fine-Grained Categorization and Verification, CVPR 2015.

In `root` or its folder `sv_data`:

    image/<id>/<name>.jpg                          id: 1..281
    {train,test}_surveillance.txt                  lines "<id>/<name>.jpg"
    sv_make_model_name.mat                         281 x 3 cell: make, model, id in the web set; row id - 1

Labels are id - 1. There are no years, boxes or viewpoints.
"""

from __future__ import annotations

from pathlib import Path

from vmmr.data.datasets.annotations import cells, distinct_models, field, locate, present, read_lines, read_mat, text
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError
from vmmr.taxonomy import Taxonomy, VehicleClass

__all__ = ["listed", "read"]


def read(root: Path | str, *, strict: bool = False) -> Manifest:
    """The official split. Missing images are counted and left out, or refused where `strict`."""
    return present(listed(root), strict=strict, name="CompCars (surveillance)")


def listed(root: Path | str) -> Manifest:
    """The rows of the official lists, whether the images are there or not."""
    names = "sv_make_model_name.mat"
    root = locate(root, (names,), ("sv_data",), name="surveillance part of CompCars")
    table = [cells(row) for row in cells(field(read_mat(root / names), "sv_make_model_name", names))]
    if any(len(row) < 2 for row in table):
        raise ManifestError(f"{names} needs rows of make, model and web id")
    models = distinct_models((number, text(row[0]), text(row[1])) for number, row in enumerate(table, 1))
    columns: dict[str, list[str]] = {name: [] for name in ("path", "make", "model", "split")}
    for split in ("train", "test"):
        for line in read_lines(root / f"{split}_surveillance.txt"):
            number = line.split("/")[0]
            if not number.isdecimal() or int(number) not in models:
                raise ManifestError(f"{split}_surveillance.txt names no model of 1..{len(models)}", got=line)
            row = (f"image/{line}", *models[int(number)], split)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    taxonomy = Taxonomy(tuple(VehicleClass(*models[number]) for number in sorted(models)))
    return Manifest.from_columns(columns, root).with_taxonomy(taxonomy)
