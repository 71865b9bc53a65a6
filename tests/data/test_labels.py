"""Labels at every level, with gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmmr.data.datasets.stanford_cars import listed
from vmmr.data.labels import attribute_values, level_labels
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError
from vmmr.levels import Levels
from vmmr.taxonomy import Taxonomy

ROWS = [  # make, model, year, body, colour
    ("Audi", "A4", 2008, "Sedan", "red"),
    ("Audi", "A4", 2012, "", "blue"),
    ("Audi", "A4", None, "Sedan", ""),
    ("Audi", "", None, "", "red"),
    ("VW", "Golf", 2012, "Hatchback", "green"),
    ("", "van", None, "Van", ""),
]


def _manifest(rows: list[tuple[str, str, int | None, str, str]]) -> Manifest:
    names = ("make", "model", "year", "body", "colour")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return Manifest.from_columns({"path": [f"{i}.jpg" for i in range(len(rows))], **columns})


def test_a_row_is_labelled_as_far_as_it_tells() -> None:
    manifest = _manifest(ROWS)
    names = ("make", "model", "class", "body", "colour", "year", "year_value")
    values = attribute_values(manifest.select([0, 1, 2, 3, 5]), names)
    assert values == {"body": ("Sedan", "Van"), "colour": ("blue", "red"), "year": ("2008", "2012")}
    levels = Levels(manifest.taxonomy.upto("class"), names, values)
    found = {name: labels.tolist() for name, labels in level_labels(manifest, levels).items()}
    assert levels.nodes("make") == ("", "Audi", "VW")
    assert levels.nodes("model") == ("van", "Audi A4", "VW Golf")
    assert levels.nodes("class") == ("van", "Audi A4 2008", "Audi A4 2012", "VW Golf 2012")
    assert found == {
        "make": [1, 1, 1, 1, 2, -1],
        "model": [1, 1, 1, -1, 2, 0],
        "class": [1, 2, -1, -1, 3, 0],
        "body": [0, -1, 0, -1, -1, 1],  # no training row was a hatchback
        "colour": [1, 0, -1, 1, -1, -1],
        "year": [0, 1, -1, -1, 1, -1],
        "year_value": [2008, 2012, -1, -1, 2012, -1],
    }
    assert all(labels.dtype == np.int64 for labels in level_labels(manifest, levels).values())


def test_coarse_levels_ask_for_nothing_finer() -> None:
    manifest = _manifest(ROWS[:5])
    makes = Levels(manifest.taxonomy.upto("make"), ("make", "year_value"))
    found = level_labels(manifest, makes)
    assert found["make"].tolist() == [0, 0, 0, 0, 1]
    assert found["year_value"].tolist() == [2008, 2012, -1, -1, 2012]
    models = Levels(manifest.taxonomy.upto("model"), ("make", "model"))
    assert level_labels(manifest, models)["model"].tolist() == [0, 0, 0, -1, 1]


def test_a_vehicle_of_no_level_is_refused() -> None:
    levels = Levels(Taxonomy.from_rows(["Audi"], ["A4"]), ("make", "class"))
    with pytest.raises(ManifestError, match="VW Golf"):
        level_labels(_manifest(ROWS[:5]), levels)


def test_the_labels_of_stanford_cars(shared: Path) -> None:
    manifest = listed(shared / "data/stanford-cars-devkit")
    names = ("make", "model", "class", "body", "year")
    levels = Levels(manifest.taxonomy, names, attribute_values(manifest, names))
    assert levels.widths == {"make": 49, "model": 189, "class": 196, "body": 9, "year": 16}
    found = level_labels(manifest, levels)
    assert (found["class"] == manifest.labels).all()
    assert (found["make"] == manifest.taxonomy.make_of[manifest.labels]).all()
    assert (found["model"] == manifest.taxonomy.model_of[manifest.labels]).all()
    train = manifest.splits == "train"
    counts = np.bincount(found["make"][train])
    assert (counts.min(), counts.max()) == (29, 905)
    assert 0 < (found["body"] < 0).mean() < 0.15  # 16 of 196 names tell no body


def test_colours_in_either_spelling(tmp_path: Path) -> None:
    for name in ("color", "colour"):
        (tmp_path / "cars.csv").write_text(f"path,model,{name}\na.jpg,Golf,red\n")
        assert Manifest.read(tmp_path / "cars.csv").column("colour").tolist() == ["red"]
