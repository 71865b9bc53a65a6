"""What the name of a condition says: `clean`, `gaussian_0.1` (sigma on [-1, 1]), `fog@3` (severity 1 to 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vmmr.evaluation.robustness import FAMILIES

__all__ = ["Condition", "condition_title", "families", "family_of", "parse_condition"]

_TITLES = {
    "gaussian": "Gaussian noise",
    "gaussian_blur": "Gaussian blur",
    "h264": "H.264",
    "impulse": "impulse noise",
    "jpeg": "JPEG",
    "rolling": "rolling shutter",
    "shot": "shot noise",
    "speckle": "speckle noise",
}


class Condition(NamedTuple):
    """kind: clean, sigma (Gaussian noise of known size) or the name of a corruption; level: sigma or severity."""

    kind: str
    level: float


def parse_condition(name: str) -> Condition:
    """A condition's name in its parts. Raises ValueError where the level is no number.

    >>> parse_condition("gaussian_0.1"), parse_condition("gaussian_blur@3")
    (Condition(kind='sigma', level=0.1), Condition(kind='gaussian_blur', level=3.0))
    """
    kind, at, level = name.partition("@")
    if at:
        return Condition(kind, float(level))
    if kind.startswith("gaussian_"):
        return Condition("sigma", float(kind.removeprefix("gaussian_")))
    return Condition(kind, 0.0)


def condition_title(name: str) -> str:
    """A condition's name in words; the severity is left to the reader's context.

    >>> condition_title("gaussian_0.4"), condition_title("low_light@3"), condition_title("clean")
    ('Gaussian noise, σ 0.4', 'low light', 'clean')
    """
    kind, level = parse_condition(name)
    return f"Gaussian noise, σ {level:g}" if kind == "sigma" else _TITLES.get(kind, kind.replace("_", " "))


def family_of(kind: str) -> str:
    """common, validation or camera for a corruption (camera for one that no family lists); gaussian for sigma; ""
    for clean.

    >>> [family_of(kind) for kind in ("fog", "speckle", "rain", "sigma", "clean")]
    ['common', 'validation', 'camera', 'gaussian', '']
    """
    if kind in ("clean", "sigma"):
        return "gaussian" if kind == "sigma" else ""
    return next((family for family, kinds in FAMILIES.items() if kind in kinds), "camera")


def families(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Corruptions by family and kind, each kind's conditions by severity; sigma and clean are in none.

    >>> families(["clean", "fog@5", "fog@1", "rain@3"])
    {'common': {'fog': ['fog@1', 'fog@5']}, 'camera': {'rain': ['rain@3']}}
    """
    found: dict[str, dict[str, list[str]]] = {family: {} for family in FAMILIES}
    for name in sorted(names, key=lambda name: parse_condition(name).level):
        family = family_of(parse_condition(name).kind)
        if family in found:
            found[family].setdefault(parse_condition(name).kind, []).append(name)
    return {family: kinds for family, kinds in found.items() if kinds}
