"""Raw columns -> the canonical columns of a manifest: typed, checked, and nothing done row by row in Python.

The contract of the columns stands in `vmmr.data.manifest`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from vmmr.errors import ManifestError
from vmmr.taxonomy import VehicleClass, parse_stanford_name

__all__ = [
    "BOX",
    "COLUMNS",
    "WORDS",
    "Where",
    "canonical",
    "combinations",
    "joined",
    "line_of",
    "numbers",
    "read_csv",
    "used",
    "words_of",
]

WORDS = pa.dictionary(pa.int32(), pa.string())
BOX = ("left", "top", "right", "bottom")
COLUMNS: dict[str, pa.DataType] = {
    "path": pa.string(),
    "make": WORDS,
    "model": WORDS,
    "year": pa.int16(),
    "body": WORDS,
    "colour": WORDS,
    "viewpoint": WORDS,
    **dict.fromkeys(BOX, pa.int32()),
    "split": WORDS,
    "group": WORDS,
    "vehicle_id": WORDS,
    "camera_id": WORDS,
}
"""Name and Arrow type of every column, in order."""

_SCHEMA = pa.schema(list(COLUMNS.items()))
_ALIASES = {"filename": "path", "image": "path", "class": "class_name", "color": "colour"}
_SPLIT_WORDS = {"validation": "val", "valid": "val", "training": "train", "testing": "test"}
_NO_YEAR = {"", "unknown", "none", "nan", "null", "na", "n/a"}

Where = Callable[[int], str]
"""Names a row in a message: "line 17"."""


def read_csv(path: Path) -> pa.Table:
    """The known columns of a CSV with a header line, each of its canonical name and type; others are not read."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    names = [_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in header]
    wanted = [name for name in (*COLUMNS, "class_name") if name in names]
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise ManifestError("a column stands twice in line 1", got=twice)
    # Years come as text ("unknown", "2012.0") and boxes as floats ("12.0", what pandas makes of a column with gaps).
    types = {name: pa.float64() if name in BOX else pa.string() if name == "path" else WORDS for name in wanted}
    try:
        return pa_csv.read_csv(
            path,
            # Arrow counts the rows for its messages only on one thread.
            read_options=pa_csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=types, include_columns=wanted, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        found = re.search(r"(?:column #(\d+): )?Row #(\d+): (.*)", str(error), re.DOTALL)
        if found is None:
            raise
        column = f", column '{names[int(found[1])]}'" if found[1] else ""
        raise ManifestError(f"{line_of(path, int(found[2]) - 2)}{column} cannot be read", got=found[3]) from error


def line_of(path: Path, row: int) -> str:
    """The line of a data row in a CSV file: blank lines are no rows, quoted line breaks are no ends."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        rows = (lines.line_num for fields in lines if fields)
        return f"line {next(number for place, number in enumerate(rows) if place == row + 1)}"


def canonical(table: pa.Table, where: Where) -> pa.Table:
    """The table with exactly the columns of `COLUMNS`, checked. `where` names a row in a message."""
    if "path" not in table.column_names:
        raise ManifestError("no column 'path'", got=table.column_names)
    if not {"make", "model", "class_name"} & set(table.column_names):
        raise ManifestError("no column names the class", got=table.column_names, do="give make and model or class_name")
    count = table.num_rows
    columns = {}
    for name, kind in (*COLUMNS.items(), ("class_name", WORDS)):
        column = table[name] if name in table.column_names else pa.nulls(count, kind)
        if kind == WORDS:
            columns[name] = _aswords_of(column)
        elif name == "path":
            columns[name] = pc.fill_null(column.cast(pa.string()), "")
            if isinstance(columns[name], pa.ChunkedArray):
                columns[name] = columns[name].combine_chunks()
        elif name == "year":
            columns[name] = _as_years(column, where)
        else:
            columns[name] = _as_whole(name, column, where)
    words, codes = words_of(columns.pop("class_name"))
    if any(words):
        columns |= _from_class_names(words, codes, columns)
    split_words, split_codes = words_of(columns["split"])
    columns["split"] = _recode([_SPLIT_WORDS.get(word.lower(), word) for word in split_words], split_codes)

    _refuse(pc.equal(columns["path"], ""), "empty path", where)
    _refuse(pc.match_substring(columns["path"], "\0"), "a path with a zero byte", where)
    nameless = np.ones(count, dtype=np.bool_)
    for name in ("make", "model"):
        words, codes = words_of(columns[name])
        nameless &= np.array([not word for word in words], dtype=np.bool_)[codes]
    _refuse(nameless, "neither make nor model", where)
    box = np.stack([numbers(columns[name]) for name in BOX], axis=1)
    some = (box >= 0).any(axis=1)
    bad = some & ~((box[:, 0] >= 0) & (box[:, 1] >= 0) & (box[:, 0] < box[:, 2]) & (box[:, 1] < box[:, 3]))
    _refuse(bad, "a box must have 0 <= left < right and 0 <= top < bottom", where)
    return pa.table([columns[name] for name in COLUMNS], schema=_SCHEMA)


def _refuse(bad: Any, what: str, where: Where) -> None:
    mask = np.asarray(bad)
    if mask.any():
        raise ManifestError(what, got=f"{where(int(mask.argmax()))}; {int(mask.sum())} such rows")


def _aswords_of(column: Any) -> pa.Array:
    """Any column of texts as one dictionary array without nulls, each word once, spaces at the ends cut."""
    column = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    if not pa.types.is_dictionary(column.type):
        # In one piece first: Arrow gives every chunk a copy of the whole dictionary, and unifying them takes for ever.
        column = pa.chunked_array([column.cast(pa.string()).combine_chunks().dictionary_encode()])
    column = column.unify_dictionaries().combine_chunks()
    words = ["" if word is None else str(word).strip() for word in column.dictionary.to_pylist()]
    codes = pc.fill_null(column.indices.cast(pa.int32()), len(words)).to_numpy(zero_copy_only=False)
    return _recode([*words, ""], codes)


def _recode(words: list[str], codes: NDArray[Any]) -> pa.DictionaryArray:
    """Codes into `words`, where words may repeat, as a dictionary array of distinct words."""
    distinct = sorted(set(words))
    place = {word: i for i, word in enumerate(distinct)}
    table = np.array([place[word] for word in words], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(table[codes]), pa.array(distinct, pa.string()))


def words_of(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct words of a dictionary column, and the place of each row's word among them."""
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    return column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def numbers(column: Any) -> NDArray[np.int64]:
    """A column of whole numbers, -1 for null."""
    return np.asarray(pc.fill_null(column, -1)).astype(np.int64)


def _as_whole(name: str, column: Any, where: Where) -> pa.Array:
    try:
        values = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan), dtype=np.float64)
    except pa.ArrowInvalid as error:
        raise ManifestError(f"column '{name}' holds something that is no number", got=error) from error
    missing = np.isnan(values)
    with np.errstate(invalid="ignore"):
        bad = ~missing & ~((values >= 0) & (values < 2**31) & (values == np.floor(values)))
    _refuse(bad, f"column '{name}' needs whole numbers of pixels, 0 or more", where)
    return pa.array(np.where(missing, 0, values).astype(np.int32), mask=missing)


def _as_years(column: Any, where: Where) -> pa.Array:
    words, codes = words_of(_aswords_of(column))
    years = []
    for code, word in enumerate(words):
        text = word.removesuffix(".0")
        year = -1 if text.lower() in _NO_YEAR else int(text) if text.isdecimal() and len(text) == 4 else 0
        if year == 0 and (codes == code).any():
            _refuse(codes == code, f"column 'year' holds no year: {word!r}", where)
        years.append(year)
    values = np.array(years or [-1], dtype=np.int16)[codes]
    return pa.array(values, mask=values < 0)


def combinations(*codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of every distinct combination of codes, and the combination of each row."""
    rows = codes[0]
    for column in codes[1:]:
        # One column at a time, made dense in between: the product of all ranges need not fit 64 bits.
        rows = np.unique(rows * (int(column.max(initial=0)) + 1) + column, return_inverse=True)[1]
    _, first, rows = np.unique(rows, return_index=True, return_inverse=True)
    return first, rows


def _from_class_names(words: list[str], codes: NDArray[np.int64], columns: dict[str, Any]) -> dict[str, pa.Array]:
    """make, model, year and body of rows that have a class name; other rows keep theirs."""
    makes, make = words_of(columns["make"])
    models, model = words_of(columns["model"])
    bodies, body = words_of(columns["body"])
    year = numbers(columns["year"])
    first, rows = combinations(codes, make, model, body, year + 1)
    kinds = []
    for i in first:
        known = VehicleClass(makes[make[i]], models[model[i]], int(year[i]) if year[i] >= 0 else None, bodies[body[i]])
        kinds.append(_split_name(words[codes[i]], known) if words[codes[i]] else known)
    years = np.array([-1 if kind.year is None else kind.year for kind in kinds], dtype=np.int16)[rows]
    return {
        "make": _recode([kind.make for kind in kinds], rows),
        "model": _recode([kind.model for kind in kinds], rows),
        "year": pa.array(years, mask=years < 0),
        "body": _recode([kind.body or "" for kind in kinds], rows),
    }


def _split_name(name: str, known: VehicleClass) -> VehicleClass:
    if not known.make:
        try:
            return parse_stanford_name(name)
        except ManifestError:
            return VehicleClass("", name, known.year, known.body)
    model = name.removeprefix(known.make).strip()
    if known.year is not None:
        model = model.removesuffix(str(known.year)).strip()
    return VehicleClass(known.make, model or known.model, known.year, known.body)


def joined(paths: Any, root: Path) -> Any:
    """Paths seen from `root`: absolute ones stay."""
    below = pc.binary_join_element_wise(pa.scalar(str(root)), paths, "/") if str(root) != "." else paths
    return pc.if_else(pc.starts_with(paths, "/"), paths, below)


def used(column: Any) -> bool:
    """Whether any row of a canonical column has a value."""
    if column.type == WORDS:
        return any(words_of(column)[0])
    return bool(column.null_count < len(column))
