from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vmmr.data.pixels import Pixels
from vmmr.data.preprocess import Preprocess
from vmmr.evaluation.classify import accuracy, macro_accuracy, make_accuracy, predict_logits, views


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_accuracy_against_a_naive_count(images: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator).numpy()
    found = accuracy(logits, labels)
    for k, name in ((1, "top1"), (5, "top5")):
        hits = sum(int(label) in np.argsort(-row.numpy())[:k] for row, label in zip(logits, labels, strict=True))
        assert found[name] == pytest.approx(hits / images)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 1000))
def test_accuracy_over_classes_and_makes_against_loops(images: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    answers, labels = random.integers(0, classes, (2, images))
    make_of = random.integers(0, 3, classes)
    shares = []
    for label in set(labels.tolist()):
        own = [int(a) for a, b in zip(answers, labels, strict=True) if b == label]
        shares.append(own.count(label) / len(own))
    assert macro_accuracy(answers, labels) == pytest.approx(sum(shares) / len(shares))
    hits = [make_of[a] == make_of[b] for a, b in zip(answers, labels, strict=True)]
    assert make_accuracy(answers, labels, make_of) == pytest.approx(sum(hits) / images)
    assert make_accuracy(answers, labels, make_of) >= (answers == labels).mean()


def _pixels(folder: Path, count: int, preprocess: Preprocess) -> Pixels:
    """Pictures of one grey level each: 0, 10, 20, ..."""
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (10 * number,) * 3).save(path)
    return Pixels(paths, preprocess)


def test_views_come_in_order_with_their_rows_as_keys(tmp_path: Path) -> None:
    preprocess = Preprocess(height=8, width=8, mean=(0, 0, 0), std=(1 / 255,) * 3)
    pixels = _pixels(tmp_path, 7, preprocess)
    told: list[list[int]] = []

    def degrade(image: torch.Tensor, keys: NDArray[np.int64]) -> torch.Tensor:
        told.append(keys.tolist())
        return image + torch.from_numpy(keys).view(-1, 1, 1, 1)

    found = list(views(pixels, preprocess, batch_size=3, degrade=degrade))
    assert told == [[0, 1, 2], [3, 4, 5], [6]]
    assert [round(v) for clean, _ in found for v in clean[:, 0, 0, 0].tolist()] == [10 * k for k in range(7)]
    assert [round(v) for _, shown in found for v in shown[:, 0, 0, 0].tolist()] == [11 * k for k in range(7)]
    rows = np.array([5, 1])
    (clean, shown), *rest = views(pixels, preprocess, rows=rows, degrade=degrade)
    assert rest == []
    assert [round(v) for v in clean[:, 0, 0, 0].tolist()] == [50, 10]
    assert [round(v) for v in shown[:, 0, 0, 0].tolist()] == [55, 11]


def test_logits_come_from_an_evaluating_network_and_its_mode_comes_back(tmp_path: Path) -> None:
    preprocess = Preprocess(height=8, width=8, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = _pixels(tmp_path, 5, preprocess)
    network = torch.nn.Dropout(0.9).train()
    logits = predict_logits(lambda x: network(x).mean((2, 3)), network, pixels, preprocess, batch_size=2)
    assert network.training
    np.testing.assert_allclose(logits.numpy(), np.arange(5)[:, None].repeat(3, 1) * 10 / 255, atol=1e-6)
