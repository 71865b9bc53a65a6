"""Pictures in, candidates for new models out: what a bundle does not know, grouped, shown and ready to be named.

    out/
      answers/           every picture answered, as `vmmr predict --out` leaves them
      embeddings/        the strange ones of each part, with the directions of their features
      candidates.csv     a manifest: the pictures in groups, with a proposed label each
      unclustered.csv    the others, without one
      triage.html        the groups, for people

Parts are there whole or not at all, so a run that was killed goes on where it stopped. `vmmr triage`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import vmmr
from vmmr.bulk import ANSWERS, picture_of, run_bulk
from vmmr.config import RuntimeName
from vmmr.data.decode import decode
from vmmr.data.pixels import cut_out
from vmmr.errors import ConfigError, VmmrError
from vmmr.evaluation.triage_page import PICTURES, SHOWN, SIDE, Candidate, write_triage
from vmmr.files import alone_in, whole_file
from vmmr.recognizer import Recognizer, directions, load
from vmmr.unknown import Reason
from vmmr.unknown.groups import average_distance, group_alike, group_means, merge_distance
from vmmr.unknown.knn import KNNFitted

__all__ = ["Triage", "run_triage"]

_STRANGE = (Reason.UNKNOWN_VEHICLE, Reason.NOT_A_VEHICLE)
_BOX = ("left", "top", "right", "bottom")
_READ = ["path", *_BOX, "reason", "make", "levels", "alternatives"]
_EMBEDDED = pa.schema(
    [
        *(ANSWERS.field(name) for name in ("path", *_BOX, "reason", "make", "error")),
        ("direction", pa.list_(pa.float32())),
    ]
)
_TABLE = pa.schema(
    [
        *(ANSWERS.field(name) for name in ("path", "make", "model", "year", *_BOX)),
        ("candidate", pa.int64()),
        ("nearest", pa.string()),
        ("nearest_distance", pa.float64()),
        ("reason", pa.string()),
    ]
)
_AGREED = 2 / 3
"""The share of a group's pictures that answer one make from which on it is proposed."""


@dataclass(frozen=True)
class Triage:
    """What came of a triage: pictures listed, unreadable ones, and by reason those answered; how many strange ones were
    looked at, candidates found, pictures in them; the distance within which groups became one."""

    pictures: int
    failed: int
    reasons: dict[str, int]
    strange: int
    candidates: int
    grouped: int
    distance: float


def run_triage(
    bundle: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    distance: float | None = None,
    least: int = 3,
    far: bool = False,
    runtime: RuntimeName = "auto",
    part: int = 1024,
    progress: bool = True,
) -> Triage:
    """Answer the pictures of `sources` and group those that are unknown vehicles into candidates for new models.

    bundle, sources, runtime, part: see `vmmr.bulk.run_bulk`. distance: how far apart two groups may be on average and
    still be one; None for what suits the known classes, see `vmmr.unknown.groups.merge_distance`. least: pictures of a
    candidate. far: also group what is called no vehicle at all.

    Memory grows with the strange pictures, not with the others. Raises ConfigError for a bundle that cannot tell
    unknown vehicles or keeps no images of the known ones, and where `out` holds another job, or tables that may have
    been edited; DataError for sources that do not exist.
    """
    out = Path(out)
    recognizer = load(bundle, runtime=runtime)
    known = _known(recognizer)
    within = merge_distance(known.bank, known.labels) if distance is None else distance
    group_alike(known.bank[:0], within, least=least)  # refuses what is out of range, now and not after hours
    with alone_in(out):
        done = run_bulk(bundle, sources, out / "answers", part=part, runtime=runtime, progress=progress)
        _embed(recognizer, out, progress)
        rows, strange, unreadable = _strange(out, _STRANGE if far else _STRANGE[:1], known.bank.shape[1])
        groups = group_alike(strange, within, least=least)
        apart = average_distance(strange, known.means)
        candidates = [
            _candidate(number, np.flatnonzero(groups == number), rows, strange, known, within)
            for number in range(int(groups.max(initial=-1)) + 1)
        ]
        tables = {
            out / name: _table(np.flatnonzero(chosen), rows, groups, candidates, apart, known.names)
            for name, chosen in (("candidates.csv", groups >= 0), ("unclustered.csv", groups < 0))
        }
        _write_tables(tables)
        told = Triage(
            pictures=done.pictures,
            failed=done.failed + unreadable,
            reasons=_reasons(out),
            strange=len(rows),
            candidates=len(candidates),
            grouped=int((groups >= 0).sum()),
            distance=round(within, 4),
        )
        for candidate in candidates[:SHOWN]:
            _show(candidate, recognizer, rows)
        facts = {
            "Bundle": f"{Path(bundle).resolve().name}, digest {recognizer.digest[:16]}, vmmr {vmmr.__version__}",
            "Unknown by": f"{known.score}, {len(known.names)} known classes",
            "One group within": f"{within:.3f}, {'suits known classes best' if distance is None else 'as asked for'}",
            "Pictures of a group": f"{least} or more",
        }
        write_triage(out / "triage.html", asdict(told), candidates, facts)
        return told


class _Known(NamedTuple):
    """The images of known classes that a detector of this score keeps: directions [M, D], the place of each one's class
    in `names`, and the mean direction of each class."""

    score: str
    bank: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: list[str]
    means: NDArray[np.float32]


def _known(recognizer: Recognizer) -> _Known:
    detector = recognizer.detector
    if detector is None:
        raise ConfigError("this bundle cannot tell unknown vehicles", do="vmmr calibrate it, with --unknown knn_pca")
    if not isinstance(detector.fitted, KNNFitted):
        raise ConfigError(
            "groups are compared with images of known classes, and this bundle keeps none",
            got=f"unknown {detector.score}",
            do="vmmr calibrate it, with --unknown knn_pca",
        )
    bank = directions(detector.fitted.bank.numpy())
    there, labels = np.unique(detector.fitted.label.numpy(), return_inverse=True)
    names = [recognizer.taxonomy.names[label] for label in there]
    return _Known(detector.score, bank, labels, names, group_means(bank, labels, len(there)))


def _embed(recognizer: Recognizer, out: Path, progress: bool) -> None:
    """The strange pictures of every part with the directions of their features, unless they are there already.
    ConfigError where those are of other answers."""
    (out / "embeddings").mkdir(exist_ok=True)
    job, own = (out / "answers" / "_job.json").read_bytes(), out / "embeddings" / "_job.json"
    if not own.exists():
        with whole_file(own) as file:
            file.write(job)
    elif own.read_bytes() != job:
        do = "delete them, or name a new folder"
        raise ConfigError("these embeddings are of other answers", got=own.parent, do=do)
    missing = [part for part in _parts(out / "answers") if not (out / "embeddings" / part.name).exists()]
    console = Console(stderr=True)
    for part in track(missing, "embedding", console=console, disable=not progress, transient=True):
        wanted = pc.field("reason").isin([str(reason) for reason in _STRANGE])
        rows = pq.read_table(part, columns=_READ, filters=wanted).to_pylist()
        found = recognizer.embeddings(picture_of(row) for row in rows)
        for row, direction in zip(rows, found, strict=True):
            row["make"] = _make(row.pop("levels"), row["make"], row.pop("alternatives"))
            row |= {"error": str(direction)} if isinstance(direction, VmmrError) else {"direction": direction.tolist()}
        with whole_file(out / "embeddings" / part.name) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=_EMBEDDED), file)


def _make(levels: list[dict[str, Any]], make: str, alternatives: list[dict[str, Any]]) -> str:
    """The make that was answered: by its own level where there is one, else that of the likeliest class."""
    own = next((level["value"] for level in levels if level["level"] == "make"), "")
    return own or make or next((other["make"] for other in alternatives), "")


def _strange(out: Path, reasons: Sequence[Reason], width: int) -> tuple[list[dict[str, Any]], NDArray[np.float32], int]:
    """The strange pictures of these reasons, in the order of the listing; their directions [N, width]; how many of all
    could not be read again."""
    rows: list[dict[str, Any]] = []
    found = [np.zeros((0, width), np.float32)]
    unreadable = 0
    for part in _parts(out / "embeddings"):
        table = pq.read_table(part)
        readable = pc.is_null(table["error"])
        unreadable += len(table) - pc.sum(readable).as_py() if len(table) else 0
        table = table.filter(pc.and_(readable, pc.is_in(table["reason"], pa.array(map(str, reasons)))))
        flat = pc.list_flatten(table["direction"]).to_numpy()
        found.append(flat.reshape(len(table), width))
        rows += table.drop_columns(["direction", "error"]).to_pylist()
    return rows, np.concatenate(found), unreadable


def _reasons(out: Path) -> dict[str, int]:
    """How many pictures have each reason."""
    found: Counter[str] = Counter()
    for part in _parts(out / "answers"):
        found.update(filter(None, pq.read_table(part, columns=["reason"])["reason"].to_pylist()))
    return dict(sorted(found.items()))


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _candidate(
    number: int,
    members: NDArray[np.int64],
    rows: list[dict[str, Any]],
    strange: NDArray[np.float32],
    known: _Known,
    within: float,
) -> Candidate:
    """A group with what it is near to, its members from the most typical on."""
    centre = strange[members].mean(axis=0, keepdims=True)
    spread = average_distance(strange[members], centre)[:, 0]  # from all members, itself included
    apart = average_distance(centre, known.means)[0]
    makes = Counter(rows[row]["make"] for row in members)
    make, votes = makes.most_common(1)[0]
    return Candidate(
        number=number + 1,
        members=members[np.argsort(spread, kind="stable")].tolist(),
        make=make if votes >= _AGREED * len(members) else "",
        votes=votes / len(members),
        nearest=[(known.names[place], float(apart[place])) for place in np.argsort(apart, kind="stable")[:3]],
        spread=float(spread.mean()) * len(members) / max(1, len(members) - 1),
        within=within,
    )


def _show(candidate: Candidate, recognizer: Recognizer, rows: list[dict[str, Any]]) -> None:
    """Read pictures of a candidate, whole or as boxed, at even distances from the most typical to the least; what is
    gone is left out."""
    places = np.linspace(0, len(candidate.members) - 1, min(PICTURES, len(candidate.members))).round().astype(int)
    for place in places:
        row = rows[candidate.members[place]]
        path, box = row["path"], [row[side] for side in _BOX]
        try:
            image = decode(path, limits=recognizer.limits, shrink_to=SIDE if box[0] is None else None)
            candidate.pictures[path] = image if box[0] is None else cut_out(image, box, path)
        except VmmrError:
            continue


def _table(
    chosen: NDArray[np.int64],
    rows: list[dict[str, Any]],
    groups: NDArray[np.int64],
    candidates: list[Candidate],
    apart: NDArray[np.float32],
    names: list[str],
) -> bytes:
    """Some of the pictures as a manifest, by candidate."""
    found = []
    for row in sorted(chosen.tolist(), key=lambda row: (groups[row], row)):
        candidate = candidates[groups[row]] if groups[row] >= 0 else None
        nearest = int(apart[row].argmin())
        found.append(
            {
                **{name: rows[row][name] for name in ("path", *_BOX, "reason")},
                "make": candidate.make if candidate else "",
                "model": candidate.name if candidate else "",
                "candidate": candidate.number if candidate else None,
                "nearest": names[nearest],
                "nearest_distance": round(float(apart[row, nearest]), 4),
            }
        )
    file = BytesIO()
    pa_csv.write_csv(pa.Table.from_pylist(found, schema=_TABLE), file)
    return file.getvalue()


def _write_tables(tables: dict[Path, bytes]) -> None:
    """All of them, or none where one would take the place of another table."""
    for path, text in tables.items():
        if path.exists() and path.read_bytes() != text:
            raise ConfigError(
                "a table stands where this one belongs, and may have been edited",
                got=path,
                do="move it, or name a new folder",
            )
    for path, text in tables.items():
        with whole_file(path) as file:
            file.write(text)
