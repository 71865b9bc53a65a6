"""What the readers of annotated data sets share: MATLAB files by field name, boxes, which images are really there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError

__all__ = ["cells", "distinct_models", "field", "half_open", "locate", "present", "read_lines", "read_mat", "text"]

_log = logging.getLogger(__name__)


def locate(root: Path | str, marks: Sequence[str], inner: Sequence[str], *, name: str) -> Path:
    """The first of `root` and its `inner` folders that holds one of the files or folders `marks`."""
    for folder in (Path(root), *(Path(root) / place for place in inner)):
        if any((folder / mark).exists() for mark in marks):
            return folder
    raise ManifestError(f"no {name} in this folder", got=root, do=f"it should hold {' or '.join(marks)}")


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file (level 5), structs as dicts. Raises ManifestError for anything else.

    Take such files from the authors of a data set only: scipy's reader is native code, and bytes made to harm it can
    end the process before any error is raised.
    """
    try:
        return dict(scipy.io.loadmat(path, simplify_cells=True))
    except FileNotFoundError:
        raise ManifestError("no such annotation file", got=path) from None
    except Exception as error:
        # On damaged files the reader fails with whatever it stumbles over, ZeroDivisionError and UnboundLocalError too.
        raise ManifestError(f"{path.name} is no MATLAB file of level 5", got=repr(error)) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises ManifestError where there is no such text file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ManifestError("no such annotation file", got=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path.name} is no text file", got=error) from error
    return [line.strip() for line in lines if line.strip()]


def field(record: Any, name: str, source: str) -> Any:
    """A field of a struct, whatever its capitals and its place. Raises ManifestError where there is none."""
    if isinstance(record, dict):
        for key, value in record.items():
            if key.lower() == name.lower():
                return value
    found = sorted(record) if isinstance(record, dict) else type(record).__name__
    raise ManifestError(f"{source} has no field '{name}'", got=found)


def cells(value: Any) -> list[Any]:
    """A cell or struct array as a list; MATLAB makes no difference between one thing and an array of one."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, np.ndarray):
        return list(value)
    return [value]


def text(value: Any) -> str:
    """The text of a cell: "" for an empty one, which arrives as an empty array."""
    if isinstance(value, np.ndarray):
        return str(value.item()).strip() if value.size == 1 else ""
    return str(value).strip()


def half_open(left: Any, top: Any, right: Any, bottom: Any) -> tuple[int, int, int, int]:
    """MATLAB's box (first pixel is 1, last pixel belongs to it) as 0-based, half-open.

    Through int, because the files hold uint8 where a number fits, and 0 - 1 is 255 there.

    >>> half_open(np.uint8(1), np.uint8(1), np.uint8(255), np.uint16(300))
    (0, 0, 255, 300)
    """
    return max(int(left) - 1, 0), max(int(top) - 1, 0), int(right), int(bottom)


def distinct_models(names: Iterable[tuple[int, str, str]]) -> dict[int, tuple[str, str]]:
    """Class id -> (make, model) from (id, make, model), where the model often repeats its make, or is empty.

    >>> distinct_models([(4, "Audi", "Audi Q3"), (5, "Audi", "Q3"), (9, "Audi", "")])
    {4: ('Audi', 'Q3'), 5: ('Audi', 'Q3 (5)'), 9: ('Audi', 'model 9')}
    """
    table: dict[int, tuple[str, str]] = {}
    for number, make, model in names:
        kind = make, model.removeprefix(f"{make} ").strip() or f"model {number}"
        table[number] = (kind[0], f"{kind[1]} ({number})") if kind in table.values() else kind
    return table


def present(manifest: Manifest, *, strict: bool, name: str) -> Manifest:
    """The rows whose image is there. Missing ones are counted in a warning, or, where `strict`, raise ManifestError."""
    paths = manifest.path_list()
    folders = {path: os.path.dirname(path) for path in set(paths)}  # noqa: PTH120 (a Path for each of 10^5 rows is slow)
    there = {
        os.path.join(folder, entry)  # noqa: PTH118
        for folder in set(folders.values())
        if os.path.isdir(folder)  # noqa: PTH112
        for entry in os.listdir(folder)  # noqa: PTH208
    }
    mask = np.fromiter((path in there for path in paths), dtype=np.bool_, count=len(paths))
    if mask.all():
        return manifest
    missing = int((~mask).sum())
    first = paths[int(mask.argmin())]
    if strict or not mask.any():
        raise ManifestError(
            f"{missing} of {len(paths)} images of {name} are missing",
            got=f"none at {first}",
            do="complete the copy" if strict else "give the folder that holds the images",
        )
    _log.warning("%s: %d of %d images are missing and left out, such as %s", name, missing, len(paths), first)
    return manifest.select(mask)
