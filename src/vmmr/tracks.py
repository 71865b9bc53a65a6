"""One answer a track: what a network says of every frame of a vehicle, fused.

Frames come from a folder of pictures or a video file, boxes and the names of tracks from a table. A track costs one row
of logits in memory, and four numbers a frame. `vmmr track`.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from vmmr.answer import Answer, Box
from vmmr.data.datasets.class_folders import IMAGE_SUFFIXES
from vmmr.data.decode import decode
from vmmr.errors import ConfigError, DataError, ImageError, ManifestError
from vmmr.recognizer import Crop, Prepared, Recognizer

__all__ = ["Sighting", "TrackAnswer", "answer_tracks", "fit_independence", "frames_of", "fuse", "read_sightings"]

_SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, slots=True)
class Sighting:
    """A vehicle in a frame. frame: 0-based. box: in pixels of the frame; None for all of it."""

    frame: int
    track: str
    box: Box | None


@dataclass(frozen=True, slots=True)
class TrackAnswer:
    """What is said of a track. frames: how many were fused; first, last: their numbers. failed: sightings without a
    pixel, outside the frame, or in a frame that could not be read. answer is None where no frame is left."""

    track: str
    answer: Answer | None
    frames: int
    first: int
    last: int
    failed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for JSON."""
        return asdict(self) | {"answer": None if self.answer is None else self.answer.to_dict()}


def fuse(logits: NDArray[np.floating], *, independence: float = 0.0) -> NDArray[np.float32]:
    """The logits of a track: of its frames [n, K], n >= 1, to [K].

    Frames whose errors are independent multiply their likelihoods: the sum of their log-probabilities. Frames of one
    vehicle repeat each other's errors; were they all the same, they would say no more than one of them: the mean. In
    between stands mean x n^independence, independence in [0, 1]; the softmax's constants fall out. 0 is never surer
    than the frames are together, and 1 is naive Bayes.

    >>> fuse(np.array([[2.0, 0.0], [0.0, 1.0]])).tolist()
    [1.0, 0.5]
    >>> fuse(np.array([[2.0, 0.0], [0.0, 1.0]]), independence=1.0).tolist()
    [2.0, 1.0]
    """
    return _scaled(logits.sum(axis=0, dtype=np.float64), len(logits), independence)


def _scaled(total: NDArray[np.float64], count: int, independence: float) -> NDArray[np.float32]:
    return np.asarray(total * float(count) ** (independence - 1), dtype=np.float32)


def fit_independence(
    tracks: Sequence[NDArray[np.floating]], labels: Sequence[int], *, temperature: float = 1.0
) -> float:
    """The independence with which fused tracks are calibrated best: least negative log-likelihood over labelled tracks.

    tracks: logits [n_i, C] of classes, any numbers of frames; labels: the class of each; temperature: the bundle's.
    Raises DataError where there is no track of two frames or more, which alone tell.
    """
    if len(tracks) != len(labels):
        raise DataError("every track needs its label", got=f"{len(tracks)} tracks, {len(labels)} labels")
    several = [(track / temperature, label) for track, label in zip(tracks, labels, strict=True) if len(track) > 1]
    if not several:
        raise DataError("no track of two frames or more", got=f"{len(tracks)} tracks", do="give longer ones")

    def nll(independence: float) -> float:
        lost = 0.0
        for track, label in several:
            fused = fuse(track, independence=independence).astype(np.float64)
            fused -= fused.max()
            lost += float(np.log(np.exp(fused).sum()) - fused[label])
        return lost / len(several)

    found = minimize_scalar(nll, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-3})
    return min((float(found.x), 0.0, 1.0), key=nll)


def read_sightings(path: str | os.PathLike[str]) -> list[Sighting]:
    """The sightings of a table: .csv with a header, or .json with a list of objects.

    `frame` (0-based) is needed; `track` is "" and the box the whole frame where they are missing. A box is left, top,
    right and bottom, or, as trackers often write it, left, top, width and height; numbers are rounded. Raises
    ManifestError that names the row.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows: Any = list(csv.DictReader(text.splitlines()))
        elif path.suffix.lower() == ".json":
            rows = json.loads(text)
        else:
            raise ManifestError("sightings come in a .csv or a .json file", got=path.name)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ManifestError(f"cannot read {path.name}", got=error) from error
    if not isinstance(rows, list) or not rows:
        raise ManifestError(
            f"{path.name} lists no sightings", got=type(rows).__name__, do="give a row a vehicle a frame"
        )
    return [_sighting(row, f"{path.name}, row {number}") for number, row in enumerate(rows, 1)]


def _sighting(row: Any, where: str) -> Sighting:
    if not isinstance(row, Mapping):
        raise ManifestError(f"{where} is no object", got=repr(row)[:80])
    told = {key: row[key] for key in row if row[key] not in (None, "")}
    try:
        frame = int(told["frame"])
        given = [name for name in (*_SIDES, "width", "height") if name in told]
        box = None
        if given:
            left, top = round(float(told["left"])), round(float(told["top"]))
            if {"width", "height"} <= told.keys():
                right, bottom = left + round(float(told["width"])), top + round(float(told["height"]))
            else:
                right, bottom = round(float(told["right"])), round(float(told["bottom"]))
            box = Box(left, top, right, bottom)
    except KeyError as error:
        raise ManifestError(f"{where} lacks {error}", got=", ".join(map(str, told))[:200]) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ManifestError(f"{where} holds what is no number", got=error) from error
    if frame < 0:
        raise ManifestError(f"{where}: frames are counted from 0", got=frame)
    return Sighting(frame, str(told.get("track", "")), box)


def frames_of(source: str | os.PathLike[str]) -> Iterator[NDArray[np.uint8] | ImageError]:
    """The frames of a folder, its pictures by name, or of a video file: uint8 [H, W, 3], one at a time.

    A picture that cannot be read is an ImageError in its place. Raises DataError for no folder and no video. A video
    is decoded by FFmpeg through PyAV: give it files of your own cameras, not of strangers.
    """
    source = Path(source)
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise DataError("no pictures in this folder", got=source, do=f"it needs {', '.join(IMAGE_SUFFIXES)} files")
        for path in paths:
            try:
                yield decode(path)
            except ImageError as error:
                yield error
        return
    if not source.is_file():
        raise DataError("no such folder or video", got=source, do="check the path")
    try:
        import av
    except ImportError as error:
        raise ConfigError("PyAV is not installed", do="pip install 'vmmr[video]', or pass a folder") from error
    try:
        with av.open(str(source), options={"protocol_whitelist": "file"}) as video:
            if not video.streams.video:
                raise DataError("this file has no video", got=source.name)
            for frame in video.decode(video.streams.video[0]):
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"cannot decode {source.name}", got=error, do="convert it, or pass a folder of frames"
        ) from error


def answer_tracks(
    recognizer: Recognizer,
    frames: Iterator[NDArray[np.uint8] | ImageError],
    sightings: Sequence[Sighting],
    *,
    independence: float = 0.0,
    top: int = 5,
) -> list[TrackAnswer]:
    """One answer a track, in the order of their first frames. frames: see `frames_of`; independence: see `fuse`.

    Whether the vehicle is known is decided as for one picture, by the medians over the track's frames of the score, of
    contrast and detail, and of the shorter side of the box: what most of the frames look like, which one strange frame
    does not change.

    Raises ConfigError for an independence out of [0, 1], DataError where frames end before the sightings do.
    """
    if not 0 <= independence <= 1:
        raise ConfigError("independence lies in [0, 1]", got=independence)
    tracks: dict[str, _Running] = {}
    crops = _crops(recognizer, frames, sorted(sightings, key=lambda sighting: sighting.frame), tracks)
    while batch := list(islice(crops, recognizer.batch_size)):
        outputs = recognizer.outputs(np.stack([seen.pixels for _, seen in batch]))
        for row, (track, seen) in enumerate(batch):
            track.add(outputs["logits"][row], seen.side, outputs["signs"][row] if "signs" in outputs else None)
    answers = iter(_fused_answers(recognizer, [t for t in tracks.values() if t.count], independence, top))
    return [
        TrackAnswer(name, next(answers) if found.count else None, found.count, found.first, found.last, found.failed)
        for name, found in tracks.items()
    ]


@dataclass(slots=True)
class _Running:
    """A track so far: the sum of its logits, and of each frame the side and the detector's signs."""

    first: int
    last: int
    total: NDArray[np.float64] | None = None
    count: int = 0
    failed: int = 0
    sides: list[int] = field(default_factory=list)
    signs: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, logits: NDArray[np.float32], side: int, signs: NDArray[np.float32] | None) -> None:
        self.total = logits.astype(np.float64) if self.total is None else self.total + logits
        self.count += 1
        self.sides.append(side)
        if signs is not None:
            self.signs.append(signs)


def _fused_answers(recognizer: Recognizer, tracks: Sequence[_Running], independence: float, top: int) -> list[Answer]:
    """The answers of tracks that have a frame."""
    fused = [_scaled(t.total, t.count, independence) for t in tracks if t.total is not None]
    if not fused:
        return []
    outputs = {"logits": np.stack(fused)}
    if recognizer.detector is not None:
        outputs["signs"] = np.stack([np.median(t.signs, axis=0) for t in tracks]).astype(np.float32)
    return recognizer.answers_from(outputs, top=top, sides=[float(np.median(t.sides)) for t in tracks])


def _crops(
    recognizer: Recognizer,
    frames: Iterator[NDArray[np.uint8] | ImageError],
    sightings: Sequence[Sighting],
    tracks: dict[str, _Running],
) -> Iterator[tuple[_Running, Prepared]]:
    """The vehicles, frame by frame, as the network takes them; those that cannot be had are counted."""
    rest = iter(sightings)
    sighting = next(rest, None)
    seen = 0
    for number, frame in enumerate(frames):
        seen = number + 1
        while sighting is not None and sighting.frame == number:
            track = tracks.setdefault(sighting.track, _Running(number, number))
            track.last = number
            try:
                if isinstance(frame, ImageError):
                    raise frame
                yield track, recognizer.prepare(frame if sighting.box is None else Crop(frame, sighting.box))
            except ImageError:
                track.failed += 1
            sighting = next(rest, None)
        if sighting is None:
            return
    if sighting is not None:
        raise DataError("the frames end before the sightings do", got=f"{seen} frames, a sighting in {sighting.frame}")
