from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_softmax, softmax

import vmmr
from vmmr.answer import Box
from vmmr.errors import ConfigError, DataError, ImageError, ManifestError
from vmmr.tracks import Sighting, answer_tracks, fit_independence, frames_of, fuse, read_sightings

RED, BLUE = ("Audi", "A4"), ("BMW", "M3")


def frame(cars: Path, left: str, right: str, number: int = 0) -> NDArray[np.uint8]:
    """Two pictures side by side, [36, 96, 3]."""
    both = [np.asarray(Image.open(cars / "test" / name / f"{number}.png")) for name in (left, right)]
    return np.concatenate(both, axis=1)


def test_the_mean_is_the_geometric_mean_of_the_distributions_and_the_sum_their_product() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7))
    chance = softmax(logits, axis=1)
    mean = np.prod(chance, axis=0) ** (1 / 5)
    assert softmax(fuse(logits)) == pytest.approx(mean / mean.sum(), rel=1e-5)
    product = np.prod(chance, axis=0)
    assert softmax(fuse(logits, independence=1.0)) == pytest.approx(product / product.sum(), rel=1e-4)


@settings(deadline=None)
@given(st.integers(1, 9), st.floats(0, 1))
def test_the_order_of_frames_says_nothing_and_one_frame_speaks_for_itself(count: int, rho: float) -> None:
    logits = np.random.default_rng(count).normal(size=(count, 4))
    shuffled = logits[np.random.default_rng(1).permutation(count)]
    assert fuse(shuffled, independence=rho) == pytest.approx(fuse(logits, independence=rho), abs=1e-5)
    assert fuse(logits[:1], independence=rho) == pytest.approx(logits[0], abs=1e-6)
    assert fuse(np.repeat(logits[:1], count, axis=0)) == pytest.approx(logits[0], abs=1e-5)


@pytest.mark.parametrize(("shared", "least", "most"), [(0.0, 0.8, 1.0), (1.0, 0.0, 0.2)])
def test_independence_is_found(shared: float, least: float, most: float) -> None:
    # Frames whose errors are their own count one by one; frames that share theirs count as one.
    random = np.random.default_rng(3)
    classes, tracks, labels = 3, [], []
    for label in random.integers(0, classes, 400):
        error = random.normal(size=(6, classes)) * (1 - shared) + random.normal(size=classes) * shared
        seen = 1.5 * np.eye(classes)[label] + error
        # The posterior of unit normal noise around 1.5 e_y: log-likelihoods are 1.5 x, up to a constant.
        tracks.append(1.5 * seen)
        labels.append(int(label))
    found = fit_independence(tracks, labels)
    assert least <= found <= most

    def nll(rho: float) -> float:
        fused = np.stack([log_softmax(fuse(track, independence=rho).astype(float)) for track in tracks])
        return float(-fused[np.arange(len(labels)), labels].mean())

    assert all(nll(found) <= nll(rho) + 1e-6 for rho in np.linspace(0, 1, 41))


def test_every_track_gets_the_answer_of_its_vehicle(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    recognizer.batch_size = 3  # tracks span batches
    frames = [frame(tiny_cars, "Audi/A4/2012", "BMW/M3/2010", number) for number in range(4)]
    sightings = [
        Sighting(number, name, box)
        for number in (2, 0, 3, 1)
        for name, box in (("red", Box(0, 0, 48, 36)), ("blue", Box(48, 0, 200, 36)))
    ]
    found = {track.track: track for track in answer_tracks(recognizer, iter(frames), sightings)}
    for name, (make, model), side in (("red", RED, slice(0, 48)), ("blue", BLUE, slice(48, 96))):
        track = found[name]
        assert track.answer is not None
        assert (track.answer.make, track.answer.model) == (make, model)
        assert (track.frames, track.first, track.last, track.failed) == (4, 0, 3, 0)
        crops = np.stack([recognizer.read(np.ascontiguousarray(f[:, side])) for f in frames])
        mean = recognizer.outputs(crops)["logits"].mean(axis=0) / recognizer.temperature
        assert track.answer.confidence == pytest.approx(softmax(mean).max(), abs=1e-5)


def test_what_cannot_be_seen_is_counted_and_costs_no_answer(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    good = frame(tiny_cars, "Audi/A4/2012", "BMW/M3/2010")
    frames: list[NDArray[np.uint8] | ImageError] = [good, ImageError("cut short"), good]
    sightings = [Sighting(n, "a", Box(0, 0, 48, 36)) for n in range(3)] + [Sighting(1, "gone", None)]
    sightings.append(Sighting(2, "outside", Box(500, 500, 600, 600)))
    told = {track.track: track for track in answer_tracks(recognizer, iter(frames), sightings)}
    assert (told["a"].frames, told["a"].failed) == (2, 1)
    assert told["gone"].answer is None
    assert (told["outside"].frames, told["outside"].failed) == (0, 1)
    assert json.loads(json.dumps(told["a"].to_dict()))["answer"]["model"] == "A4"
    with pytest.raises(DataError, match="3 frames, a sighting in 7"):
        answer_tracks(recognizer, iter(frames), [Sighting(7, "late", None)])
    with pytest.raises(ConfigError, match="independence"):
        answer_tracks(recognizer, iter(frames), sightings, independence=1.5)


def test_frames_are_read_no_further_than_the_last_sighting(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")

    def endless() -> Iterator[NDArray[np.uint8] | ImageError]:
        while True:
            yield frame(tiny_cars, "Audi/A4/2012", "BMW/M3/2010")

    [track] = answer_tracks(recognizer, endless(), [Sighting(40, "a", Box(0, 0, 48, 36))])
    assert (track.first, track.last, track.frames) == (40, 40, 1)


def test_a_video_and_a_folder_of_its_frames_are_the_same(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    pictures = [frame(tiny_cars, "Audi/A4/2012", "BMW/M3/2010", number) for number in range(4)]
    folder = tmp_path / "frames"
    folder.mkdir()
    with av.open(str(tmp_path / "film.mkv"), "w") as film:
        stream = film.add_stream("ffv1", rate=10)  # lossless
        stream.width, stream.height, stream.pix_fmt = 96, 36, "bgr0"
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / f"{number:03d}.png")
            film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")))
        film.mux(stream.encode())
    shown, filed = list(frames_of(tmp_path / "film.mkv")), list(frames_of(folder))
    assert len(shown) == len(filed) == 4
    for one, other, pixels in zip(shown, filed, pictures, strict=True):
        assert np.array_equal(one, pixels)
        assert np.array_equal(other, pixels)
    (folder / "002.png").write_bytes(b"no picture")
    assert isinstance(list(frames_of(folder))[2], ImageError)
    for bad, says in ((folder / "002.png", "cannot decode"), (tmp_path / "none.mp4", "no such folder or video")):
        with pytest.raises(DataError, match=says):
            list(frames_of(bad))


def test_sightings_come_from_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "frame,track,left,top,right,bottom,score\n0,7,1.4,2,30,40,0.9\n3,7,,,,,\n", encoding="utf-8-sig"
    )
    (tmp_path / "b.csv").write_text("frame,track,left,top,width,height\n0,7,1.4,2,29,38\n")
    (tmp_path / "c.json").write_text(
        json.dumps([{"frame": 0, "track": 7, "left": 1, "top": 2, "right": 30, "bottom": 40}])
    )
    first = Sighting(0, "7", Box(1, 2, 30, 40))
    assert read_sightings(tmp_path / "a.csv") == [first, Sighting(3, "7", None)]
    assert read_sightings(tmp_path / "b.csv") == [first]
    assert read_sightings(tmp_path / "c.json") == [first]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "track\n1\n", "row 1 lacks 'frame'"),
        ("a.csv", "frame,left\n0,1\n", "lacks 'top'"),
        ("a.csv", "frame\nx\n", "no number"),
        ("a.csv", "frame,left,top,right,bottom\n0,nan,0,1,1\n", "no number"),
        ("a.csv", "frame\n-1\n", "counted from 0"),
        ("a.csv", "", "no sightings"),
        ("a.json", "{}", "no sightings"),
        ("a.json", "[1]", "no object"),
        ("a.json", "[", "cannot read"),
        ("a.txt", "frame\n0\n", ".csv or a .json"),
    ],
)
def test_a_table_of_sightings_says_what_is_wrong(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=says):
        read_sightings(tmp_path / name)


def test_no_long_track_tells_nothing_of_independence() -> None:
    with pytest.raises(DataError, match="two frames"):
        fit_independence([np.zeros((1, 3))], [0])
    with pytest.raises(DataError, match="label"):
        fit_independence([np.zeros((2, 3))], [])
