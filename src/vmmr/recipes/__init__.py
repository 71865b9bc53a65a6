"""One file a recipe: the settings of a published or recommended run."""

from __future__ import annotations

from collections.abc import Callable

from vmmr.config import TrainConfig
from vmmr.errors import ConfigError
from vmmr.recipes.levels import levels
from vmmr.recipes.plain import plain
from vmmr.recipes.plain_noise import plain_noise
from vmmr.recipes.pmal_fast import pmal_fast
from vmmr.recipes.pmal_published import pmal_published
from vmmr.recipes.pmd_fast import pmd_fast
from vmmr.recipes.pmd_published import pmd_published
from vmmr.recipes.robust import robust
from vmmr.recipes.sam import sam

__all__ = ["RECIPES", "recipe"]

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "levels": levels,
    "plain": plain,
    "plain_noise": plain_noise,
    "pmal_fast": pmal_fast,
    "pmal_published": pmal_published,
    "pmd_fast": pmd_fast,
    "pmd_published": pmd_published,
    "robust": robust,
    "sam": sam,
}


def recipe(name: str) -> TrainConfig:
    """The settings of a recipe by name; ConfigError lists the names there are."""
    if name not in RECIPES:
        raise ConfigError("no such recipe", got=repr(name), do=f"use one of {', '.join(RECIPES)}")
    return RECIPES[name]()
