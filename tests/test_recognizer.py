from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vmmr
from vmmr.answer import Answer
from vmmr.data.preprocess import Preprocess
from vmmr.errors import BundleError, ConfigError, DataError, ImageError
from vmmr.export.bundle import read_bundle
from vmmr.models import ProgressiveNetwork
from vmmr.recognizer import Picture


def picture(cars: Path) -> Path:
    return cars / "test" / "BMW" / "M3" / "2010" / "0.png"


def alike(answer: object, other: Answer) -> bool:
    """The same candidates in the same order; a batch of another size may round differently in the last bits."""
    assert isinstance(answer, Answer)
    first, second = ([a, *a.alternatives] for a in (answer, other))
    return [(c.make, c.model, c.year) for c in first] == [(c.make, c.model, c.year) for c in second] and [
        c.confidence for c in first
    ] == pytest.approx([c.confidence for c in second], abs=1e-6)


def test_the_face_is_what_it_says() -> None:
    assert sorted(vmmr.__all__) == sorted(name for name in vmmr.__all__ if hasattr(vmmr, name))
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = vmmr.nothing_here


def test_every_kind_of_picture_gets_the_same_answer(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    path = picture(tiny_cars)
    image = Image.open(path)
    answers = [
        recognizer(path),
        recognizer(str(path)),
        recognizer(path.read_bytes()),
        recognizer(np.asarray(image)),
        recognizer(image),
        vmmr.recognize(path, bundle=tiny_run / "bundle"),
    ]
    assert all(answer == answers[0] for answer in answers)
    assert all(alike(answer, answers[0]) for answer in recognizer([path, path]))
    assert (answers[0].make, answers[0].model, answers[0].year) == ("BMW", "M3", 2010)


def test_an_answer_is_the_softmax_of_the_plain_timm_model(tiny_cars: Path, tiny_run: Path) -> None:
    bundle = read_bundle(tiny_run / "bundle")
    recognizer = vmmr.load(tiny_run / "bundle")
    answer, pixels = recognizer(picture(tiny_cars), top=3), recognizer.read(picture(tiny_cars))
    decoded = np.asarray(Image.open(picture(tiny_cars)).convert("RGB"))
    assert np.abs(bundle.preprocess.resized(decoded).astype(int) - pixels).max() <= 1  # another resize, see `pixels`
    image = bundle.preprocess.normalise(torch.from_numpy(pixels).permute(2, 0, 1))[None]
    with torch.no_grad():
        expected = (bundle.network().model(image) / bundle.spec.temperature).softmax(1)[0]
    found = [answer.confidence, *(c.confidence for c in answer.alternatives)]
    assert found == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-6)
    assert sum(found) == pytest.approx(1.0, abs=1e-5)


def test_an_answer_does_not_depend_on_its_neighbours(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    paths = sorted(tiny_cars.glob("test/**/*.png"))
    together = recognizer(paths)
    for path, answer in zip(paths, together, strict=True):
        alone = recognizer(path)
        assert (alone.make, alone.model) == (answer.make, answer.model)
        assert alone.confidence == pytest.approx(answer.confidence, abs=1e-5)


def test_grey_arrays_are_pictures_and_other_things_are_not(tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    grey = np.full((20, 30), 90, np.uint8)
    assert recognizer(grey) == recognizer(np.repeat(grey[..., None], 3, axis=-1))
    with pytest.raises(DataError, match="uint8"):
        recognizer(np.zeros((20, 30, 3), np.float32))
    with pytest.raises(ImageError, match="no picture"):
        recognizer(17)  # type: ignore[call-overload]


def test_a_bad_picture_costs_only_its_own_answer(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture(tiny_cars).read_bytes()[:60])
    recognizer = vmmr.load(tiny_run / "bundle")
    found = recognizer.answers([picture(tiny_cars), broken, picture(tiny_cars)])
    alone = recognizer(picture(tiny_cars))
    assert alike(found[0], alone)
    assert alike(found[2], alone)
    assert isinstance(found[1], ImageError)
    assert "broken.png" in str(found[1])
    with pytest.raises(ImageError, match=r"broken\.png"):
        recognizer([picture(tiny_cars), broken])


def test_exif_orientation_of_a_pillow_image_is_applied(tiny_run: Path) -> None:
    pixels = np.zeros((24, 48, 3), np.uint8)
    pixels[:, :24] = (200, 40, 40)
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    upright.rotate(90, expand=True).save(stored, "PNG", exif=exif)
    recognizer = vmmr.load(tiny_run / "bundle")
    turned = recognizer(Image.open(stored))
    assert turned == recognizer(upright) == recognizer(stored.getvalue())


def test_no_bundle_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        vmmr.load(tmp_path / "nowhere")


def test_the_steps_of_an_answer_are_open(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    paths = sorted(tiny_cars.glob("test/**/*.png"))[:5]
    pixels = np.stack([recognizer.read(path) for path in paths])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (5, *recognizer.runtime.size, 3))
    assert recognizer.answers_from(recognizer.outputs(pixels), top=2) == recognizer(paths, top=2)
    assert (recognizer.runtime.name, recognizer.runtime.precision) == ("torch", "fp32")


def test_what_follows_the_network_keeps_to_one_thread(
    tiny_cars: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    inside: list[int] = []
    scores = recognizer._scores

    def watched(logits: torch.Tensor) -> torch.Tensor:
        inside.append(torch.get_num_threads())
        return scores(logits)

    monkeypatch.setattr(recognizer, "_scores", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        outputs = recognizer.outputs(recognizer.read(picture(tiny_cars))[None])
        recognizer.answers_from(outputs)
        recognizer.probabilities_from(outputs)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(inside) == {1}
    assert len(inside) >= 2


def test_pictures_of_one_class_lie_together(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    paths = sorted(tiny_cars.glob("test/**/*.png"))
    rows = recognizer.embed(paths)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(paths)), abs=1e-6)
    features = recognizer.outputs(recognizer.read(paths[3])[None])["features"][0]
    assert rows[3] == pytest.approx(features / np.linalg.norm(features), abs=1e-5)
    alike, same = rows @ rows.T, np.equal.outer(*[[path.parent for path in paths]] * 2)
    assert alike[same].mean() > alike[~same].mean()
    with pytest.raises(ImageError):
        recognizer.embed([b"no picture"])
    with pytest.raises(DataError, match="nothing to embed"):
        recognizer.embed([])
    recognizer.batch_size = 2
    streamed = list(recognizer.embeddings(iter([paths[0], b"no picture", *paths[1:]])))
    assert isinstance(streamed.pop(1), ImageError)
    np.testing.assert_allclose(np.stack([row for row in streamed if isinstance(row, np.ndarray)]), rows, atol=1e-6)


def test_a_bundle_is_run_by_torch(tiny_run: Path) -> None:
    assert vmmr.load(tiny_run / "bundle", runtime="torch").runtime.name == "torch"
    with pytest.raises(ConfigError, match="vmmr export"):
        vmmr.load(tiny_run / "bundle", runtime="openvino")
    with pytest.raises(ConfigError, match="no such runtime"):
        vmmr.load(tiny_run / "bundle", runtime="tensorrt")  # type: ignore[arg-type]


def test_a_stream_answers_in_order_and_holds_few_pictures(tiny_cars: Path, tiny_run: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    recognizer.batch_size = 4
    paths = sorted(tiny_cars.glob("test/**/*.png"))
    wanted = {path: recognizer(path) for path in paths}
    taken = 0

    def pictures() -> Iterator[Picture]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield b"broken" if number % 7 == 3 else paths[number % len(paths)]

    number = 0
    for number, answer in enumerate(recognizer.stream(pictures(), workers=2), start=1):
        assert taken - number <= 3 * 4 + 2
        if (number - 1) % 7 == 3:
            assert isinstance(answer, ImageError)
        else:
            assert alike(answer, wanted[paths[(number - 1) % len(paths)]])
    assert number == taken == 50
    assert list(recognizer.stream([])) == []


def test_a_denoiser_restores_all_of_a_picture_in_its_proportions(tiny_denoiser: Path, tiny_cars: Path) -> None:
    recognizer = vmmr.load(tiny_denoiser)
    assert recognizer.restores
    source = Image.open(picture(tiny_cars)).convert("RGB")  # 48 x 36
    found = recognizer.restore(source)
    assert (found.dtype, found.shape) == (np.uint8, (48, 64, 3))  # the longer side of the input, 4 : 3
    network = read_bundle(tiny_denoiser).network()
    assert isinstance(network, ProgressiveNetwork)
    squashed = Preprocess(height=32, width=64).pixels(np.asarray(source))  # the bundle crops half of it away
    image = torch.from_numpy(squashed).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        restored = network.decoders[2](image, network.backbone(image)["features_3"])
    shown = ((restored[0] + 1) * 127.5).clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    wanted = np.asarray(Image.fromarray(shown).resize((64, 48), Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert np.abs(found.astype(int) - np.asarray(source.resize((64, 48)))).mean() > 1  # it does something
    box = vmmr.Crop(source, vmmr.Box(10, 0, 20, 30))
    np.testing.assert_array_equal(recognizer.restore(box), recognizer.restore(source.crop((10, 0, 20, 30))))
    assert recognizer.restore(box).shape == (64, 21, 3)
    assert recognizer.restore(np.zeros((1, 500, 3), np.uint8)).shape == (1, 64, 3)
    with pytest.raises(ImageError):
        recognizer.restore(b"no picture")
    with torch.no_grad():
        recognizer.runtime.network.network.decoders[2].skip.change[0].weight.fill_(torch.nan)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="finite"):
        recognizer.restore(source)


def test_a_plain_bundle_restores_nothing(tiny_run: Path, tiny_cars: Path) -> None:
    recognizer = vmmr.load(tiny_run / "bundle")
    assert not recognizer.restores
    with pytest.raises(ConfigError, match="no decoder"):
        recognizer.restore(picture(tiny_cars))
