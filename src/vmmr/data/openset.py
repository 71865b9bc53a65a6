"""Who is unknown: classes held out of training, in three grades, from one seeded draw.

    models   held-out models of known makes: hard, their siblings are known
    makes    held-out makes as a whole: medium
    others   what is no vehicle: easy; folders of pictures, see `other_pictures`

The template is that of fine-grained open-set benchmarks (OpenOOD's Aircraft, the Semantic Shift Benchmark of Vaze et
al., arXiv 2110.06207): unknown classes of the same data set, judged on the same split as the known ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from vmmr.data.manifest import Manifest
from vmmr.data.splits import groups_of
from vmmr.errors import ConfigError, ManifestError
from vmmr.taxonomy import MAX_NODES, Taxonomy, VehicleClass

__all__ = ["OpenSetProtocol", "OpenSets", "apply_protocol", "draw_protocol", "other_pictures"]

_FORMAT, _VERSION = "vmmr-openset", 1
_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

_T = TypeVar("_T")

Key = tuple[str, str, int | None]
"""Make, model and year: what makes a class this class."""


@dataclass(frozen=True)
class OpenSetProtocol:
    """Which classes are known, and which are held out. No class is in two of them.

    Raises ManifestError where one is, or where none is known.
    """

    seed: int
    known: tuple[Key, ...]
    models: tuple[Key, ...]
    makes: tuple[Key, ...]

    def __post_init__(self) -> None:
        every = [*self.known, *self.models, *self.makes]
        if len(set(every)) != len(every) or not self.known:
            raise ManifestError("known and held-out classes must be disjoint, and some known", got=len(every))
        known_makes = {key[0] for key in self.known}
        if any(key[0] not in known_makes for key in self.models) or any(key[0] in known_makes for key in self.makes):
            raise ManifestError("held-out models are of known makes, and held-out makes are not")

    def to_json(self) -> str:
        """The protocol as a text; `from_json` gives it back."""
        lines = [f'"format": "{_FORMAT}"', f'"version": {_VERSION}', f'"seed": {self.seed}']
        for name in ("known", "models", "makes"):
            rows = ",\n".join(json.dumps(key, ensure_ascii=False) for key in getattr(self, name))
            lines.append(f'"{name}": [\n{rows}\n]')
        return "{" + ",\n".join(lines) + "}\n"

    @classmethod
    def from_json(cls, text: str) -> OpenSetProtocol:
        """The protocol of `to_json`. Raises ManifestError for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT or data["version"] != _VERSION or type(data["seed"]) is not int:
                raise ValueError("format, version or seed differ")
            found = {}
            for name in ("known", "models", "makes"):
                if len(data[name]) > MAX_NODES:
                    raise ValueError(f"{len(data[name])} classes")
                found[name] = tuple(VehicleClass(*row).key for row in data[name])
                Taxonomy(tuple(VehicleClass(*key) for key in found[name]))  # checks names and years
            return cls(seed=data["seed"], **found)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ManifestError("no text of an open-set protocol", got=error) from error


class OpenSets(NamedTuple):
    """known: all rows of known classes, with their own taxonomy and splits. models, makes: the rows to judge on, whose
    labels under the known taxonomy are all -1. unused: rows left out, see `apply_protocol`."""

    known: Manifest
    models: Manifest
    makes: Manifest
    unused: int


def draw_protocol(manifest: Manifest, *, models: float = 0.15, makes: float = 0.15, seed: int = 0) -> OpenSetProtocol:
    """Hold out about these shares of the classes: whole makes first, then models of the makes that are left.

    A model is held out with all its years. Every known make keeps a model, and one make at least is known; rows without
    a make are never held out as one. The draw depends on seed and classes alone, not on the order of rows. Raises
    ConfigError for shares out of range, and where the classes cannot give what is asked for.
    """
    if not 0 <= models < 1 or not 0 <= makes < 1 or models + makes >= 1:
        raise ConfigError("shares of held-out classes lie in [0, 1), and so does their sum", got=(models, makes))
    if seed < 0:
        raise ConfigError("a seed is not negative", got=seed)
    keys = sorted({item.key for item in manifest.taxonomy.classes}, key=lambda k: (k[0], k[1], k[2] or 0))
    random = np.random.default_rng(seed)
    by_make: dict[str, list[Key]] = {}
    for key in keys:
        by_make.setdefault(key[0], []).append(key)
    named = [make for make in by_make if make]
    out_makes = _taken(
        {make: len(by_make[make]) for make in named}, makes * len(keys), random, most=len(by_make) - 1 if makes else 0
    )
    by_model: dict[tuple[str, str], list[Key]] = {}
    for key in keys:
        if key[0] not in out_makes:
            by_model.setdefault(key[:2], []).append(key)
    # The first model of each make, in an order of chance, stays known.
    order = list(by_model)
    random.shuffle(order)
    staying = dict(reversed(order))
    free = {m: len(by_model[m]) for m in sorted(by_model) if staying[m[0]] != m[1]}
    out_models = _taken(free, models * len(keys), random, most=len(free))
    held = [("makes", makes, out_makes), ("models", models, out_models)]
    for name, share, found in held:
        if share and not found:
            raise ConfigError(f"no {name} can be held out", got=f"{len(keys)} classes", do=f"pass {name}=0")
    return OpenSetProtocol(
        seed=seed,
        known=tuple(k for k in keys if k[0] not in out_makes and k[:2] not in out_models),
        models=tuple(k for k in keys if k[:2] in out_models),
        makes=tuple(k for k in keys if k[0] in out_makes),
    )


def _taken(sizes: dict[_T, int], wanted: float, random: np.random.Generator, most: int) -> set[_T]:
    """Things in an order of chance, until their sizes sum to what is wanted as nearly as whole ones allow; at least one
    where anything is wanted."""
    names = list(sizes)
    taken: set[_T] = set()
    total = 0
    for place in random.permutation(len(names)).tolist():
        size = sizes[names[place]]
        if wanted and len(taken) < most and (not taken or total + size / 2 <= wanted):
            taken.add(names[place])
            total += size
    return taken


def apply_protocol(
    manifest: Manifest, protocol: OpenSetProtocol, *, split: str = "test", groups: ArrayLike | None = None
) -> OpenSets:
    """The manifest as a protocol divides it.

    split: where held-out classes are judged, that of the known test images; a manifest without any such row is judged
    on all rows. groups: int64 [N], equal for pictures of one photograph, such as `vmmr.data.check.duplicate_groups`.

    Left out of everything: pictures that bear a known and a held-out class at once (one group, file or vehicle under
    two names), as neither is right of them; of the held-out classes, those that look like a known one
    (`Taxonomy.equivalent`), and rows of other splits. Raises ManifestError where the manifest has a class that the
    protocol does not name.
    """
    kinds, rows = manifest.vehicles
    part_of = {key: part for part in ("known", "models", "makes") for key in getattr(protocol, part)}
    missing = sorted({VehicleClass(*kind[:3]).name for kind in kinds if kind[:3] not in part_of})
    if missing:
        raise ManifestError(f"{len(missing)} classes are not in the protocol", got=missing[:10], do="draw it anew")
    taxonomy = manifest.taxonomy
    known = {label for label, item in enumerate(taxonomy.classes) if part_of.get(item.key) == "known"}
    alike = {label for group in taxonomy.equivalent if known & set(group) for label in group} - known
    lookalikes = {taxonomy.classes[label].key for label in alike}
    part = np.array([part_of[kind[:3]] for kind in kinds], dtype="<U6")[rows]
    is_known = part == "known"
    group = groups_of(manifest, groups)
    torn = np.isin(group, np.intersect1d(group[is_known], group[~is_known]))
    judged = manifest.splits == split
    if not judged.any():
        judged[:] = True
    judged &= ~torn & ~np.array([kind[:3] in lookalikes for kind in kinds], dtype=np.bool_)[rows]
    own = _restricted(taxonomy, known)
    held = [manifest.select((part == name) & judged).with_taxonomy(own, strict=False) for name in ("models", "makes")]
    learned = manifest.select(is_known & ~torn).with_taxonomy(own)
    unused = len(manifest) - len(learned) - sum(map(len, held))
    return OpenSets(learned, held[0], held[1], unused)


def other_pictures(folder: str | Path, *, most: int | None = None, seed: int = 0) -> Manifest:
    """Every picture below a folder, as a manifest of one class, "other", without split: what is no vehicle.

    most: at most this many, drawn evenly. Raises ManifestError where there is no picture.
    """
    root = Path(folder)
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in _PICTURES)
    if not paths:
        raise ManifestError("no picture in this folder", got=root.name, do=f"it needs {', '.join(_PICTURES)}")
    if most is not None and most < len(paths):
        chosen = np.sort(np.random.default_rng(seed).choice(len(paths), size=most, replace=False))
        paths = [paths[i] for i in chosen]
    return Manifest.from_columns({"path": paths, "model": ["other"] * len(paths)}, root)


def _restricted(taxonomy: Taxonomy, labels: set[int]) -> Taxonomy:
    """The taxonomy of some of its labels, in their order, with the look-alike groups that are left."""
    place = {label: new for new, label in enumerate(sorted(labels))}
    groups = [[place[label] for label in group if label in place] for group in taxonomy.equivalent]
    return Taxonomy(tuple(taxonomy.classes[label] for label in place)).with_equivalent(g for g in groups if len(g) > 1)
