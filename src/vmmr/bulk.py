"""Answers for any number of pictures: a listing, cut into parts, each answered whole into a Parquet file.

    out/
      _job.json              what may not change from one run to the next
      _pictures.parquet      the listing, one row group a part: path, box
      part-00000000.parquet  the answers of one part
      ...

The listing is made once. A part is there whole or not at all, so a run that was killed goes on where it stopped, and
workers on many machines may share the folder: every picture is answered exactly once. `vmmr predict --out`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

import vmmr
from vmmr.answer import Answer, Box
from vmmr.config import RuntimeName
from vmmr.data.datasets.class_folders import IMAGE_SUFFIXES
from vmmr.errors import BundleError, ConfigError, DataError, ManifestError
from vmmr.files import alone_in, whole_file, write_json
from vmmr.recognizer import Crop, Picture, Recognizer, load

__all__ = ["ANSWERS", "Summary", "answer_part", "listed", "picture_of", "run_bulk"]

_TABLES = (".csv", ".parquet")
_BOX = ("left", "top", "right", "bottom")
_LISTING = pa.schema([("path", pa.string()), *((side, pa.int64()) for side in _BOX)])
_CANDIDATE = pa.struct(
    [("make", pa.string()), ("model", pa.string()), ("year", pa.int32()), ("confidence", pa.float64())]
)
_LEVEL = pa.struct([("level", pa.string()), ("value", pa.string()), ("confidence", pa.float64())])

ANSWERS = pa.schema(
    [
        *_LISTING,
        ("make", pa.string()),
        ("model", pa.string()),
        ("year", pa.int32()),
        ("confidence", pa.float64()),
        ("level", pa.string()),
        ("alternatives", pa.list_(_CANDIDATE)),
        ("levels", pa.list_(_LEVEL)),
        ("known", pa.bool_()),
        ("reason", pa.string()),
        ("error", pa.string()),
    ]
)
"""The columns of an answered part: those of the listing, those of `Answer`, and why there is none."""


@dataclass(frozen=True)
class Summary:
    """How a job stands: pictures listed, answered, and those that could not be read."""

    pictures: int
    answered: int
    failed: int


def listed(sources: Sequence[str | os.PathLike[str]]) -> Iterator[dict[str, Any]]:
    """The pictures that sources name, as {"path", "left", "top", "right", "bottom"}, box None where it is the whole.

    A source is a picture, a folder (the pictures in and below it, in the order of the file system, however many), or a
    table, .csv or .parquet, with a column `path` (relative to the table's folder, or absolute) and, where vehicles are
    boxed, left, top, right and bottom. Nothing is held but the row at hand. Raises DataError for what is not there.
    """
    for source in map(Path, sources):
        if source.is_dir():
            yield from ({"path": path, **dict.fromkeys(_BOX)} for path in _below(source))
        elif not source.exists():
            raise DataError("no such picture, folder or table", got=source, do="check the path")
        elif source.suffix.lower() in _TABLES:
            yield from _rows(source)
        else:
            yield {"path": str(source), **dict.fromkeys(_BOX)}


def _below(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path))
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                yield entry.path


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    try:
        csv = table.suffix.lower() == ".csv"
        for batch in pa_csv.open_csv(table) if csv else pq.ParquetFile(table).iter_batches():
            names = batch.schema.names
            if "path" not in names:
                raise ManifestError(f"{table.name} has no column path", got=", ".join(names)[:200])
            boxed = set(_BOX) <= set(names)
            sides = [batch[side].cast(pa.int64()).to_pylist() for side in _BOX] if boxed else []
            paths = batch["path"].cast(pa.string()).to_pylist()
            for row, path in enumerate(paths):
                if not path:
                    raise ManifestError(f"{table.name} has a row without a path", do="fill it in")
                box = [side[row] for side in sides] or [None] * 4
                if any(side is None for side in box) and any(side is not None for side in box):
                    raise ManifestError(f"{table.name} has half a box", got=f"{path}: {box}", do="give all four sides")
                yield {"path": str(table.parent / path), **dict(zip(_BOX, box, strict=True))}
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{table.name} cannot be read as a table of pictures", got=error) from error


def picture_of(row: dict[str, Any]) -> Picture:
    """The picture of a row of `listed`, cut to its box where it has one."""
    path: str = row["path"]
    return path if row["left"] is None else Crop(path, Box(*(row[side] for side in _BOX)))


def answer_part(recognizer: Recognizer, out: Path, number: int, *, top: int) -> None:
    """Answer one part of the listing in `out`, unless it is answered already."""
    target = _part(out, number)
    if target.exists():
        return
    rows = pq.ParquetFile(out / "_pictures.parquet").read_row_group(number).to_pylist()
    found = recognizer.answers([picture_of(row) for row in rows], top=top)
    for row, answer in zip(rows, found, strict=True):
        row |= answer.to_dict() if isinstance(answer, Answer) else {"error": str(answer)}
    with whole_file(target) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=ANSWERS), file)


def run_bulk(
    bundle: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    top: int = 5,
    part: int = 1024,
    runtime: RuntimeName = "auto",
    engine: Literal["local", "ray"] = "local",
    workers: int = 2,
    address: str | None = None,
    progress: bool = True,
) -> Summary:
    """Answer what is not answered yet; pictures that cannot be read get an error in place of an answer.

    bundle: folder of a bundle or an exported artifact; runtime: see `load`. sources: see `listed`. top: candidates an
    answer. part: pictures a file; with `top`, what decides how much memory a worker needs. engine: this process, or
    Ray, where so many `workers` take parts; `address` is that of a running cluster, whose machines see bundle, pictures
    and `out` at the same paths; without it, Ray starts on this machine.

    Raises ConfigError where `out` holds a job with another bundle or other settings, or one that is running;
    DataError for sources that do not exist.
    """
    out = Path(out)
    if part < 1 or workers < 1 or top < 1:
        raise ConfigError("part, workers and top are 1 or more", got=f"{part}, {workers}, {top}")
    if engine not in ("local", "ray"):
        raise ConfigError("no such engine", got=repr(engine), do="choose local or ray")
    bundle = Path(bundle).resolve()
    recognizer = (
        load(bundle, runtime=runtime) if engine == "local" else None
    )  # first: a bundle that fails costs no listing
    job = {
        "format": "vmmr-predictions",
        "version": 2,
        "vmmr": vmmr.__version__,
        "bundle": _digest(bundle),
        "sources": [str(Path(source).resolve()) for source in sources],
        "top": top,
        "part": part,
    }
    with alone_in(out):
        _begin(out, job)
        parts = pq.read_metadata(out / "_pictures.parquet").num_row_groups
        missing = [number for number in range(parts) if not _part(out, number).exists()]
        if recognizer is None:
            done = _on_ray(bundle, out, missing, job, runtime, workers, address)
        else:
            done = _here(recognizer, out, missing, top)
        console = Console(stderr=True)
        for _ in track(done, "answering", total=len(missing), console=console, disable=not progress, transient=True):
            pass
        return _summary(out)


def _begin(out: Path, job: dict[str, Any]) -> None:
    """Make the listing and _job.json, or see that this is the job that is there."""
    described = out / "_job.json"
    if described.exists():
        before = json.loads(described.read_text(encoding="utf-8"))
        for key, value in job.items():
            if before.get(key) != value:
                raise ConfigError(
                    f"{out} holds a job with another {key}",
                    got=value,
                    do=f"name a new folder, or pass {before.get(key)}",
                )
        return
    if any(out.glob("part-*.parquet")):
        raise ConfigError("this folder holds parts of no job", got=out, do="name a new folder")
    rows = listed(job["sources"])
    count = 0
    with whole_file(out / "_pictures.parquet") as file, pq.ParquetWriter(file, _LISTING) as writer:
        while some := list(islice(rows, job["part"])):
            writer.write_table(pa.Table.from_pylist(some, schema=_LISTING), row_group_size=job["part"])
            count += len(some)
        if not count:
            raise DataError("no pictures here", got=job["sources"], do=f"they need {', '.join(IMAGE_SUFFIXES)} files")
    write_json(described, job)


def _summary(out: Path) -> Summary:
    """Counted from the feet of the files, not from their rows."""
    pictures = answered = failed = 0
    listing = pq.read_metadata(out / "_pictures.parquet")
    for number in range(listing.num_row_groups):
        pictures += listing.row_group(number).num_rows
        if _part(out, number).exists():
            foot = pq.read_metadata(_part(out, number))
            columns = (foot.row_group(0).column(place) for place in range(foot.num_columns))
            good = next(column.statistics.null_count for column in columns if column.path_in_schema == "error")
            answered, failed = answered + good, failed + foot.num_rows - good
    return Summary(pictures, answered, failed)


def _here(recognizer: Recognizer, out: Path, missing: Sequence[int], top: int) -> Iterator[int]:
    for number in missing:
        answer_part(recognizer, out, number, top=top)
        yield number


class _Answerer:
    """A worker of Ray: loads the bundle once, then answers parts."""

    def __init__(self, bundle: Path, out: Path, digest: str, top: int, runtime: RuntimeName) -> None:
        self._recognizer, self._out, self._top = load(bundle, runtime=runtime), out, top
        if self._recognizer.digest != digest:
            got = self._recognizer.digest[:16]
            raise BundleError("this machine sees another bundle", got=got, do="share one folder")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer_part(self._recognizer, self._out, int(row["part"]), top=self._top)
        return row


def _on_ray(
    bundle: Path,
    out: Path,
    missing: Sequence[int],
    job: dict[str, Any],
    runtime: RuntimeName,
    workers: int,
    address: str | None,
) -> Iterator[int]:
    """Parts by actors of Ray Data: what a lost machine had not finished is answered by another."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("Ray is not installed", do="pip install 'vmmr[ray]'") from error
    if not missing:
        return
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    parts = ray.data.from_items([{"part": number} for number in missing], override_num_blocks=len(missing))
    answered = parts.map(
        _Answerer,  # type: ignore[arg-type]  # a class whose objects are the function
        fn_constructor_args=(bundle, out.resolve(), job["bundle"], job["top"], runtime),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=1,
    )
    for row in answered.iter_rows():
        yield int(row["part"])


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:08d}.parquet"


def _digest(bundle: Path) -> str:
    try:
        return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError("no such bundle", got=bundle, do="name the folder that holds manifest.json") from error
