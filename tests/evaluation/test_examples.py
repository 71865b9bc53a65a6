"""The pictures of a page: what the network was given, what it said, and the file that a path names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vmmr.data.manifest import Manifest
from vmmr.data.preprocess import Preprocess
from vmmr.errors import ManifestError
from vmmr.evaluation.examples import example_strips, pictures_of
from vmmr.export.bundle import Bundle, ModelSpec, build_network
from vmmr.models import Backbone, ProgressiveNetwork

SIZE = 32


def bundle(kind: str, manifest: Manifest) -> Bundle:
    torch.manual_seed(0)
    spec = ModelSpec("progressive" if kind == "progressive" else "plain", "test_resnet", classes=3, heads="lean")
    network = build_network(spec)
    tensors = network.model.state_dict() if isinstance(network, Backbone) else network.state_dict()
    preprocess = Preprocess(height=SIZE, width=SIZE, crop=1.0)
    return Bundle(spec, manifest.taxonomy, preprocess, {k: v.clone() for k, v in tensors.items()}, "", kind)


@pytest.fixture(scope="module")
def manifest(tiny_cars: Path) -> Manifest:
    return Manifest.load(tiny_cars).split("test")


def test_strips_show_what_was_answered(manifest: Manifest) -> None:
    bundles = {kind: bundle(kind, manifest) for kind in ("plain", "progressive")}
    shown = ("clean", "gaussian_0.1")
    first, last = example_strips(bundles, manifest, shown=shown, seed=3)
    names = manifest.taxonomy.names
    assert [first.truth, last.truth] == [names[manifest.labels[row]] for row in (0, len(manifest) - 1)]
    assert first.condition == "clean"
    np.testing.assert_array_equal(first.noisy, first.clean)
    path = manifest.table["path"][0].as_py()
    np.testing.assert_array_equal(first.clean, pictures_of([path], manifest, bundles["plain"])[path])
    change = last.noisy.astype(int) - last.clean
    assert 8 < change.std() < 14  # sigma 0.1 on [-1, 1] is 12.75 of 255, less what is clipped
    image = torch.from_numpy(first.clean).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        for kind, reply in first.replies.items():
            network = bundles[kind].network()
            found = network.answer(image) if isinstance(network, ProgressiveNetwork) else network(image)["logits_0"]
            confidence, label = found.softmax(dim=1)[0].max(dim=0)
            assert reply.name == names[int(label)]
            assert reply.confidence == pytest.approx(float(confidence), abs=1e-4)
            assert reply.right == (reply.name == first.truth)
        network = bundles["progressive"].network()
        assert isinstance(network, ProgressiveNetwork)
        restored = network.restore(image, network(image)["features_3"], 3)[0].permute(1, 2, 0).numpy()
    assert first.restored is not None
    np.testing.assert_allclose(first.restored, np.clip(restored * 127.5 + 127.5, 0, 255), atol=0.51)
    assert list(last.pictures()) == ["clean", "Gaussian noise, σ 0.1", "denoised"]


def test_a_plain_network_restores_nothing_and_noise_repeats(manifest: Manifest) -> None:
    bundles = {"plain": bundle("plain", manifest)}
    [first], [again], [other] = (example_strips(bundles, manifest, shown=["fog@3"], seed=s) for s in (0, 0, 1))
    assert first.restored is None
    assert list(first.pictures()) == ["clean", "fog"]
    np.testing.assert_array_equal(first.noisy, again.noisy)
    assert (first.noisy != other.noisy).any()


def test_strange_classes_are_refused(manifest: Manifest, tiny_cars: Path) -> None:
    strange = Manifest.from_columns({"path": ["x.png"], "make": ["Lada"], "model": ["Niva"]}, tiny_cars)
    with pytest.raises(ManifestError, match="not in the taxonomy"):
        example_strips({"plain": bundle("plain", manifest)}, strange)


def test_pictures_are_those_of_the_files(manifest: Manifest, tiny_cars: Path) -> None:
    paths = manifest.table["path"].to_pylist()
    wanted = [paths[5], paths[2], "gone.png", paths[5]]
    found = pictures_of(wanted, manifest, bundle("plain", manifest))
    assert list(found) == [paths[5], paths[2]]
    for path, picture in found.items():
        with Image.open(tiny_cars / path) as image:
            mean = np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1))
        assert picture.shape == (SIZE, SIZE, 3)
        np.testing.assert_allclose(picture.mean(axis=(0, 1)), mean, atol=6)
    # A path from the folder of the manifest finds a row that has an absolute one.
    absolute = Manifest.from_columns(
        {"path": [str((tiny_cars / paths[5]).resolve())], "make": ["Audi"], "model": ["A4"]}, tiny_cars
    )
    again = pictures_of([paths[5]], absolute, bundle("plain", manifest))
    np.testing.assert_array_equal(again[paths[5]], found[paths[5]])
    assert pictures_of([], manifest, bundle("plain", manifest)) == {}
