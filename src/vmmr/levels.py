"""What a network answers: levels of the tree (make, model, class) and side attributes (body, colour, viewpoint, year).

Names and widths only, no torch. The finest level of the tree has the labels of the taxonomy; side attributes have
values of their own. `year` answers one of the known years, `year_value` a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vmmr.errors import ConfigError
from vmmr.taxonomy import MAX_NODES, TREE, Taxonomy

__all__ = [
    "LEVELS",
    "NUMBERS",
    "SIDE",
    "Feed",
    "HierarchyForm",
    "HierarchySpec",
    "Levels",
    "Taps",
    "check_names",
    "year_of",
    "year_value",
]

HierarchyForm = Literal["parallel", "coarse_to_fine", "fine_to_coarse", "conditional"]
Feed = Literal["logits", "softmax", "embedding"]
Taps = Literal["all", "shallow_first"]

SIDE = ("body", "colour", "viewpoint", "year", "year_value")
"""Levels beside the tree."""

NUMBERS = ("year_value",)
"""Levels that answer a number instead of a name."""

LEVELS = (*TREE, *SIDE)
"""All levels, in the order in which logits stand side by side."""


def year_value(year: float) -> float:
    """A year as networks learn it: decades since 2000.

    >>> year_value(2012)
    1.2
    """
    return (year - 2000) / 10


def year_of(value: float) -> int:
    """The year nearest to such a number.

    >>> year_of(1.24)
    2012
    """
    return round(2000 + 10 * value)


@dataclass(frozen=True)
class Levels:
    """The levels of a network, in the order of `LEVELS` whatever order they are named in.

    taxonomy: told as fine as the finest level of the tree, see `Taxonomy.upto`. attributes: the values of each side
    attribute among the names, in label order; a number has none. Raises ConfigError for unknown or double names, no
    level of the tree, a taxonomy that is finer than its levels, or attributes that do not fit the names.

    >>> cars = Taxonomy.from_rows(["Audi", "Audi", "VW"], ["A4", "A6", "Golf"])
    >>> levels = Levels(cars, ("class", "make", "body"), {"body": ("Sedan", "SUV")})
    >>> levels.widths, levels.tree, levels.finest, levels.parents("class", "make").tolist()
    ({'make': 2, 'class': 3, 'body': 2}, ('make', 'class'), 'class', [0, 0, 1])
    """

    taxonomy: Taxonomy
    names: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.names)
        object.__setattr__(self, "names", tuple(name for name in LEVELS if name in self.names))
        wanted = {name for name in self.side if name not in NUMBERS}
        if wanted != set(self.attributes) or not all(self.attributes.values()):
            raise ConfigError(
                "every side attribute needs its values",
                got=f"values of {sorted(name for name, values in self.attributes.items() if values)}",
                do=f"give those of {sorted(wanted)}: a column of the manifest",
            )
        if len(self.taxonomy.nodes(self.finest)) != len(self.taxonomy):
            raise ConfigError(
                f"the taxonomy is finer than the level {self.finest!r}",
                got=f"{len(self.taxonomy)} classes",
                do=f"pass Taxonomy.upto({self.finest!r})",
            )

    @property
    def tree(self) -> tuple[str, ...]:
        """Those of the tree, from coarse to fine."""
        return tuple(name for name in self.names if name in TREE)

    @property
    def side(self) -> tuple[str, ...]:
        """The others."""
        return tuple(name for name in self.names if name not in TREE)

    @property
    def finest(self) -> str:
        """The level whose labels are those of the taxonomy."""
        return self.tree[-1]

    @cached_property
    def widths(self) -> dict[str, int]:
        """How many outputs each level has."""
        return {name: 1 if name in NUMBERS else len(self.nodes(name)) for name in self.names}

    def nodes(self, level: str) -> tuple[str, ...]:
        """The names of a level's labels."""
        return self.taxonomy.nodes(level) if level in TREE else self.attributes[level]

    def parents(self, fine: str, coarse: str) -> NDArray[np.int64]:
        """Label at the finer level of the tree -> label at the coarser one."""
        return self.taxonomy.parents(fine, coarse)


def check_names(names: Sequence[str]) -> None:
    """Refuse levels that are unknown, named twice, or without one of the tree."""
    if set(names) - set(LEVELS) or len(set(names)) != len(names) or not set(names) & set(TREE):
        raise ConfigError(
            "no such levels", got=list(names), do=f"name each once, at least one of {TREE}, of {', '.join(LEVELS)}"
        )


@dataclass(frozen=True)
class HierarchySpec:
    """What a model on disk says about its levels; with its taxonomy it gives `Levels`.

    names, attributes: as of `Levels`. form, feed: of the heads, see `vmmr.models.heads.hierarchy`. taps: which levels
    the heads at the depths of a progressive network answer: all, or the coarsest first. beta: how far the coarser
    levels decide, see `vmmr.models.decoding`. thresholds: the confidence from which a level of the tree is said;
    without them the finest always is. Raises ConfigError for anything else: it may come from a stranger.
    """

    names: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    form: HierarchyForm = "parallel"
    feed: Feed = "softmax"
    taps: Taps = "all"
    beta: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("form", HierarchyForm), ("feed", Feed), ("taps", Taps)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"no such {name} of a hierarchy", got=repr(getattr(self, name)))
        lists = (self.names, *self.attributes.values()) if isinstance(self.attributes, dict) else (None,)
        if not all(isinstance(words, list | tuple) and _texts(words) for words in lists):
            raise ConfigError("levels and their values are lists of short texts", got=self.names)
        if sum(map(len, lists)) > MAX_NODES:
            raise ConfigError("too many values of side attributes", got=sum(map(len, lists)))
        check_names(self.names)
        # As JSON gives them back: lists for tuples.
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "attributes", {name: tuple(values) for name, values in self.attributes.items()})
        known = set(self.thresholds) if isinstance(self.thresholds, dict) else None
        if known not in (set(), {name for name in self.names if name in TREE}):
            raise ConfigError("every level of the tree has a threshold, or none has", got=self.thresholds)
        numbers = (self.beta, *self.thresholds.values())
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v < math.inf for v in numbers):
            raise ConfigError("beta and thresholds are finite numbers, 0 or more", got=list(numbers))

    def levels(self, taxonomy: Taxonomy) -> Levels:
        """The levels of a network with this taxonomy; ConfigError where the two do not fit."""
        return Levels(taxonomy, self.names, self.attributes)


def _texts(words: Sequence[object]) -> bool:
    return all(isinstance(word, str) and len(word) <= 200 for word in words)
