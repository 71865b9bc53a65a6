"""Labels at every level, with gaps: a row trains what it tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vmmr.data.columns import numbers, words_of
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError
from vmmr.levels import NUMBERS, SIDE, Levels
from vmmr.taxonomy import TREE

__all__ = ["attribute_values", "level_labels"]


def attribute_values(manifest: Manifest, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The distinct values, sorted, of the side attributes among `names`; take those of the training rows.

    >>> m = Manifest.from_columns({"path": ["a", "b"], "model": ["x", "y"], "body": ["SUV", ""]})
    >>> attribute_values(m, ["body"])
    {'body': ('SUV',)}
    """
    wanted = [name for name in SIDE if name in names and name not in NUMBERS]
    found = {}
    for name in wanted:
        words, codes = _words(manifest, name)
        found[name] = tuple(sorted({words[code] for code in np.unique(codes)} - {""}))
    return found


def level_labels(manifest: Manifest, levels: Levels) -> dict[str, NDArray[np.int64]]:
    """The label of every row at each level, int64 [N]; -1 where the row does not tell, or tells a value that is none.

    `year_value` has the year itself. A row that no level of the tree knows raises ManifestError with its name.

    >>> m = Manifest.from_columns({"path": ["a", "b", "c"], "make": ["VW"] * 3, "model": ["Golf", "Golf", ""],
    ...                            "year": [2012, None, None]})
    >>> levels = Levels(m.taxonomy.upto("class"), ("make", "class", "year_value"))
    >>> {name: labels.tolist() for name, labels in level_labels(m, levels).items()}
    {'make': [0, 0, 0], 'class': [0, -1, -1], 'year_value': [2012, -1, -1]}
    """
    kinds, rows = manifest.vehicles
    places = np.array([levels.taxonomy.place(*kind[:3]) for kind in kinds], dtype=np.int64).reshape(-1, len(TREE))
    columns = [TREE.index(name) for name in levels.tree]
    unknown = (places[:, columns] < 0).all(axis=1)
    if unknown.any():
        names = sorted({" ".join(filter(None, kinds[i][:2])) for i in np.flatnonzero(unknown)})
        raise ManifestError(
            f"{len(names)} vehicles are in no level of the taxonomy", got=names[:10], do="drop their rows"
        )
    found = {name: places[rows, column] for name, column in zip(levels.tree, columns, strict=True)}
    for name in levels.side:
        if name in NUMBERS:
            found[name] = numbers(manifest.table["year"])
        else:
            place = {value: label for label, value in enumerate(levels.nodes(name))}
            words, codes = _words(manifest, name)
            found[name] = np.array([place.get(word, -1) for word in words], dtype=np.int64)[codes]
    return found


def _words(manifest: Manifest, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts of a column, "" for unknown, and the place of each row's among them."""
    if name != "year":
        return words_of(manifest.table[name])
    years, codes = np.unique(numbers(manifest.table["year"]), return_inverse=True)
    return ["" if year < 0 else str(year) for year in years.tolist()], codes
