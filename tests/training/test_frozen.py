"""Layers that stay as they start, computed once: the run learns what stands behind them, and leaves a whole network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmmr.config import TrainConfig
from vmmr.data.manifest import Manifest
from vmmr.errors import ConfigError
from vmmr.evaluation.classify import accuracy, predict_logits
from vmmr.evaluation.study import read_course
from vmmr.export.bundle import read_bundle
from vmmr.models import Backbone
from vmmr.models.stem import split_at
from vmmr.noise import TRAINING_NOISE
from vmmr.training import frozen
from vmmr.training.augment import crop_and_flip
from vmmr.training.frozen import freeze, picked
from vmmr.training.run import train
from vmmr.training.samples import Samples, open_samples

Settings = Callable[..., TrainConfig]
QUIET: dict[str, Any] = {"accelerator": "cpu", "progress": False}


def network(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return Backbone("test_resnet", 4)


def test_what_is_frozen_stays_and_the_rest_learns(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(frozen="layer3", frozen_views=3, epochs=20)
    metrics = train(config, pictures, tmp_path / "run", **QUIET)
    bundle = read_bundle(tmp_path / "run" / "bundle")
    start = network(config.seed).state_dict()  # the seed is all that a fresh network needs
    assert {f"model.{name}" for name in bundle.tensors} == set(start) - {"scale", "shift"}
    for name, value in bundle.tensors.items():
        behind = name.startswith(("layer3", "layer4", "fc"))
        same = torch.equal(value, start[f"model.{name}"])
        assert same != behind or value.numel() == 0, name
    assert metrics["val_top1"] >= 0.75  # four colours
    # Selection saw maps; the bundle sees pictures and says the same.
    samples = open_samples(Manifest.load(pictures), config)
    told = bundle.network()
    logits = predict_logits(told.answer, told, samples.validation.pixels, samples.preprocess)
    assert accuracy(logits, samples.validation.labels)["top1"] == pytest.approx(metrics["val_top1"], abs=1e-6)


def test_the_maps_are_those_of_the_views(samples: Samples, tiny: Settings) -> None:
    config = tiny(frozen="layer3", frozen_views=2, noise="gaussian", padding=2)
    whole = network()
    stem, _ = split_at(whole, "layer3")
    maps = freeze(whole, samples, config).maps
    assert maps is not None
    learned, held = maps
    generator = torch.Generator().manual_seed(0)
    pixels = samples.train.pixels[np.arange(24)]
    views = []
    for _ in range(2):
        draws = torch.rand(24, 3, generator=generator)
        image = samples.preprocess.normalise(crop_and_flip(pixels, draws, 32, 32, padding=2))
        views.append(stem(TRAINING_NOISE["gaussian"](image, generator=generator)["noisy"]))
    wanted = torch.stack(views, dim=1)
    found = learned[np.arange(24)]
    assert found.dtype == torch.float16
    assert found.shape == wanted.shape == (24, 2, 48, 4, 4)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(wanted[:, 0], wanted[:, 1], atol=1e-2)
    middle = samples.preprocess.normalise(samples.preprocess.centre_crop(samples.validation.pixels[np.arange(8)]))
    torch.testing.assert_close(held[np.array([5, 1])].float()[:, 0], stem(middle)[[5, 1]], rtol=1e-3, atol=1e-3)


def test_every_view_is_picked_as_often() -> None:
    maps = torch.arange(5.0).expand(4000, 5)[:, :, None, None, None]
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(picked(maps, draws).flatten().long(), minlength=5)
    assert counts.sum() == 4000
    assert counts.min() > 700


def test_runs_that_differ_behind_the_stem_share_its_maps(
    samples: Samples, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(frozen="layer3", frozen_views=1)
    first = freeze(network(), samples, config).maps
    other = network()
    with torch.no_grad():
        other.model.layer4[0].conv1.weight.add_(1.0)
    assert freeze(other, samples, config.with_(seed=3, epochs=9, lr=0.1)).maps is first
    strange = network()
    with torch.no_grad():
        strange.model.conv1[0].weight.add_(0.1)
    for changed, seen, by in (
        (network(), samples, config.with_(noise="strong")),
        (network(), samples, config.with_(frozen="layer2")),
        (network(), replace(samples, splits="others"), config),
        (strange, samples, config),
    ):
        frozen._kept.clear()
        kept = freeze(network(), samples, config).maps
        assert freeze(changed, seen, by).maps is not kept


def test_levels_are_balanced_at_a_layer_that_learns(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(
        frozen="layer3", frozen_views=2, levels=["make", "model"], balancer="avgnorm", measure_every=1, epochs=1
    )
    train(config, pictures, tmp_path / "run", **QUIET)
    course = read_course(tmp_path / "run" / "log.csv")
    assert course["steps"]
    assert course["norms"]["model"][0] > 0
    assert course["norms"]["make"][0] == 0  # of a single make: nothing to learn
    assert course["weights"]["make"][0] == 1
    with pytest.raises(ConfigError, match="no trained layer is shared"):
        train(config.with_(frozen="global_pool"), pictures, tmp_path / "pooled", **QUIET)
    assert not (tmp_path / "pooled").exists()


def test_what_cannot_be_frozen_is_refused(samples: Samples, tiny: Settings) -> None:
    with pytest.raises(ConfigError, match="no such layer"):
        freeze(network(), samples, tiny(frozen="layer9"))
    with pytest.raises(ConfigError, match=r"do not fit into memory_gib.*lower frozen_views"):
        freeze(network(), samples, tiny(frozen="layer3", memory_gib=1e-6))
