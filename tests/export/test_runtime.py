from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vmmr.errors import DataError
from vmmr.export.bundle import Bundle
from vmmr.export.runtime import TorchRuntime
from vmmr.models import Backbone


def some_pixels(bundle: Bundle, count: int = 5, seed: int = 0) -> np.ndarray:
    size = bundle.preprocess.height, bundle.preprocess.width
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_logits_are_the_answer_and_features_enter_the_classifier(bundle: Bundle) -> None:
    pixels, network = some_pixels(bundle), bundle.network()
    image = bundle.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    backbone = network if isinstance(network, Backbone) else network.backbone
    with torch.no_grad():
        logits = network.answer(image)
        own = backbone.own_space(image)
        seen = backbone.model.forward_features(own)
        features = seen.mean((2, 3)) if seen.ndim == 4 else seen[:, 0]  # what a ResNet pools, or the class token
    outputs = TorchRuntime(bundle)(pixels)
    assert np.allclose(outputs["logits"], logits, atol=1e-5)
    assert np.allclose(outputs["features"], features, atol=1e-5)
    assert outputs["logits"].dtype == outputs["features"].dtype == np.float32
    if isinstance(network, Backbone):
        with torch.no_grad():
            again = network.model.get_classifier()(torch.from_numpy(outputs["features"]))
        assert np.allclose(again, outputs["logits"], atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(bundle: Bundle) -> None:
    runtime, pixels = TorchRuntime(bundle), some_pixels(bundle)
    together, order = runtime(pixels), [3, 0, 4, 2, 1]
    shuffled = runtime(pixels[order])
    for key, values in together.items():
        assert len(np.unique(values.round(4), axis=0)) == len(pixels)
        assert np.allclose(shuffled[key], values[order], atol=1e-5)
        assert np.allclose(np.concatenate([runtime(row[None])[key] for row in pixels]), values, atol=1e-5)


def test_threads_may_share_a_runtime(bundle: Bundle) -> None:
    runtime, pixels = TorchRuntime(bundle), some_pixels(bundle, 16)
    pixels.flags.writeable = False  # as a server's buffers are
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(lambda row: runtime(row[None])["logits"], pixels)))
    assert np.allclose(found, runtime(pixels)["logits"], atol=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 64, 48, 3), np.uint8),
        np.zeros((1, 3, 48, 64), np.uint8),
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((0, 48, 64, 3), np.uint8),
        np.zeros((1, 48, 64, 3), np.float32),
    ],
)
def test_other_pixels_are_refused(bundle: Bundle, pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match="48, 64, 3"):
        TorchRuntime(bundle)(pixels)
