from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from vmmr.config import TrainConfig
from vmmr.errors import ConfigError
from vmmr.recipes import RECIPES, recipe

REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    *(({name: 0}, (name,)) for name in ("size", "epochs", "batch_size", "sam_every", "restore_every", "frozen_views")),
    *(
        ({name: bad}, (name,))
        for name in ("lr", "trunk_lr", "weight_decay", "clip_norm", "sam_rho", "padding", "memory_gib")
        for bad in (-1, math.nan)
    ),
    *(({name: -1}, (name,)) for name in ("alpha", "restored_weight", "consistency", "feature_weight", "logit_weight")),
    *(({name: bad}, (name,)) for name in ("crop", "distil_share") for bad in (0.0, 1.1, -0.5, math.nan)),
    *(
        ({name: bad}, (name,))
        for name in ("smoothing", "ema", "warmup", "val_fraction")
        for bad in (1.0, -0.1, math.nan)
    ),
    ({"batch_size": 1}, ("batch_size",)),
    ({"weights": "w.safetensors", "pretrained": True}, ("weights", "pretrained")),
    ({"method": "pmal", "mode": "published", "noise": "strong"}, ("mode", "noise")),
    ({"method": "pmal", "mode": "published", "noise": "none"}, ("mode", "noise")),
    ({"method": "pmal", "mode": "fast", "noise": "none"}, ("method", "noise")),
    ({"method": "pmd", "mode": "published", "noise": "strong", "student_init": "fresh"}, ("mode", "noise")),
    ({"method": "pmd", "mode": "published", "noise": "none", "student_init": "teacher"}, ("mode", "student_init")),
    ({"sam_every": 2}, ("sam_every", "sam_rho")),
    ({"frozen": "blocks.5", "method": "pmal", "noise": "strong"}, ("frozen", "method")),
    ({"frozen": "blocks.5", "noise": "augmix", "consistency": 12.0}, ("frozen", "consistency")),
    ({"frozen_views": 4}, ("frozen", "frozen_views")),
    ({"restore_every": 4}, ("restore_every", "method")),
    ({"keep": "trunk"}, ("keep", "method")),
    (
        {"method": "pmal", "mode": "published", "noise": "published", "restored_weight": 0.0},
        ("restored_weight", "mode"),
    ),
    ({"consistency": 12.0}, ("consistency", "noise")),
    ({"consistency": 12.0, "method": "pmal", "noise": "augmix"}, ("consistency", "method")),
]


@pytest.mark.parametrize(("changes", "names"), REFUSED)
def test_contradictions_are_refused_by_name(changes: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**changes)
    for name in names:
        assert f"{name}=" in str(caught.value)
    assert caught.value.do


@pytest.mark.parametrize(
    "changes",
    [
        {"sam_every": 2, "sam_rho": 0.05},
        {"method": "pmal", "mode": "published", "noise": "published"},
        {"method": "pmal", "noise": "gaussian"},
        {"method": "pmd", "mode": "published", "noise": "none", "student_init": "fresh"},
        {"crop": 1.0, "distil_share": 1.0, "smoothing": 0.0, "ema": 0.0, "lr": 0.0, "warmup": 0.0},
    ],
)
def test_what_makes_sense_is_accepted(changes: dict[str, Any]) -> None:
    config = TrainConfig(**changes)
    assert {k: getattr(config, k) for k in changes} == changes


def test_a_copy_checks_too_and_knows_its_fields() -> None:
    config = TrainConfig()
    assert config.with_(lr=1e-3).lr == 1e-3
    assert config.lr == 4e-3
    with pytest.raises(ConfigError, match="learning_rate"):
        config.with_(learning_rate=1e-3)
    with pytest.raises(ConfigError, match="sam_rho"):
        config.with_(sam_every=4)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_yaml(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    config.write_yaml(tmp_path / "config.yaml")
    assert TrainConfig(**yaml.safe_load((tmp_path / "config.yaml").read_text())) == config
    assert TrainConfig(**config.to_dict()) == config


def test_unknown_recipes_are_refused_with_the_known() -> None:
    with pytest.raises(ConfigError, match="pmal_published"):
        recipe("pmal")


def test_published_recipes_are_the_papers() -> None:
    teacher, student = recipe("pmal_published"), recipe("pmd_published")
    for config in (teacher, student):
        assert (config.backbone, config.size, round(config.size / config.crop)) == ("resnet50", 448, 550)
        assert (config.epochs, config.batch_size, config.padding) == (200, 8, 8)
        assert (config.optimizer, config.weight_decay, config.schedule) == ("sgd", 5e-4, "epoch_cosine")
        assert (config.smoothing, config.sam_rho, config.sam_every, config.alpha) == (0.1, 0.05, 1, 1.0)
        assert (config.heads, config.restoration_loss, config.resize) == ("published", "charbonnier", "squash")
        assert (config.statistics, config.ema, config.clip_norm) == ("half", 0.0, 0.0)
        assert config.dense_zero_grads
    assert (teacher.lr, teacher.trunk_lr, teacher.noise) == (2e-3, 2e-4, "published")
    assert (student.lr, student.trunk_lr, student.noise) == (2e-3, 2e-3, "none")
    assert (student.feature_weight, student.logit_weight, student.relative_features) == (100.0, 1.0, False)
    assert (student.distil_share, student.student_init) == (0.5, "fresh")
