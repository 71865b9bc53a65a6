"""What there is to recognise: make -> model -> year, as one ordered, versioned list of classes.

The place of a class in the list is its label, so a taxonomy travels with every model and is never sorted again.
Pure Python and numpy: no torch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmmr.errors import ManifestError

__all__ = ["BODIES", "MAX_NODES", "TREE", "Taxonomy", "VehicleClass", "parse_stanford_name"]

TREE = ("make", "model", "class")
"""The levels of the tree of labels, from coarse to fine: make, model whatever the year, class."""

MAX_NODES = 200_000
"""A taxonomy file may hold this many classes, models and makes together."""

_MAX_NAME = 200
_MAX_TEXT = 32 * 2**20
_FORMAT = "vmmr-taxonomy"
_VERSION = 1

_BODY_WORDS = {
    "Convertible": "Convertible",
    "Coupe": "Coupe",
    "Hatchback": "Hatchback",
    "Minivan": "Minivan",
    "SUV": "SUV",
    "Sedan": "Sedan",
    "Van": "Van",
    "Wagon": "Wagon",
    "Cab": "Pickup",
    "SuperCab": "Pickup",
}
BODIES: tuple[str, ...] = tuple(sorted(set(_BODY_WORDS.values())))
"""The nine body styles that the class names of Stanford Cars speak of."""

# The only makes of Stanford Cars whose name has a space; a hyphen does not split ("Mercedes-Benz", "Rolls-Royce").
_TWO_WORD_MAKES = ("AM General", "Aston Martin", "Land Rover")


@dataclass(frozen=True)
class VehicleClass:
    """One class. `make` is "" where only a category is known; `body` describes, it does not distinguish."""

    make: str
    model: str
    year: int | None = None
    body: str | None = None

    @property
    def name(self) -> str:
        """Make, model and year in one line.

        >>> VehicleClass("Audi", "S4 Sedan", 2007).name
        'Audi S4 Sedan 2007'
        """
        return " ".join(str(part) for part in (self.make, self.model, self.year) if part not in ("", None))

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What makes the class this class: (make, model, year)."""
        return self.make, self.model, self.year


def parse_stanford_name(name: str) -> VehicleClass:
    """Split a class name of Stanford Cars; `.name` of the result gives the name back.

    The year is the last word, the make the first (or one of three pairs of words), the model all between: it keeps
    the body word, so that 196 names give 189 models. The body is read from the last word of the model.

    >>> parse_stanford_name("AM General Hummer SUV 2000")
    VehicleClass(make='AM General', model='Hummer SUV', year=2000, body='SUV')
    >>> parse_stanford_name("Ram C/V Cargo Van Minivan 2012").model
    'C/V Cargo Van Minivan'

    Raises ManifestError where there is no year at the end or nothing between make and year.
    """
    words = name.split()
    if len(words) < 3 or not re.fullmatch(r"(19|20)\d\d", words[-1]):
        raise ManifestError("a class name of Stanford Cars is 'Make Model Year'", got=repr(name))
    cut = 2 if " ".join(words[:2]) in _TWO_WORD_MAKES else 1
    model = words[cut:-1]
    if not model:
        raise ManifestError("no model between make and year", got=repr(name))
    return VehicleClass(" ".join(words[:cut]), " ".join(model), int(words[-1]), _BODY_WORDS.get(model[-1]))


def _check(item: VehicleClass, place: int) -> None:
    for field, text in (("make", item.make), ("model", item.model), ("body", "" if item.body is None else item.body)):
        if not isinstance(text, str) or len(text) > _MAX_NAME or not text.isprintable():
            raise ManifestError(
                f"{field} of class {place} is no name", got=repr(text)[:60], do=f"one line of <= {_MAX_NAME} characters"
            )
    if not item.make and not item.model:
        raise ManifestError(f"class {place} has neither make nor model")
    if item.year is not None and (type(item.year) is not int or not 1800 <= item.year <= 9999):
        raise ManifestError(f"year of class {place} is no year", got=repr(item.year))


@dataclass(frozen=True)
class Taxonomy:
    """The classes in label order, and who belongs to whom.

    classes:     class i has label i. No two share make, model and year.
    equivalent:  groups of labels that no image can tell apart, so that a confusion inside one is forgiven on request.

    >>> t = Taxonomy.from_rows(["VW", "Audi", "Audi"], ["Golf", "A4", "A4"], [2012, 2008, 2012])
    >>> [c.name for c in t.classes], t.makes, t.make_of.tolist(), t.model_of.tolist()
    (['Audi A4 2008', 'Audi A4 2012', 'VW Golf 2012'], ('Audi', 'VW'), [0, 0, 1], [0, 0, 1])
    """

    classes: tuple[VehicleClass, ...]
    equivalent: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) > MAX_NODES:
            raise ManifestError("too many classes", got=len(self.classes), do=f"at most {MAX_NODES} nodes")
        for place, item in enumerate(self.classes):
            _check(item, place)
        if len(self._index) != len(self.classes):
            twice = next(c for i, c in enumerate(self.classes) if self._index[c.key] != i)
            raise ManifestError("a class stands twice in the taxonomy", got=repr(twice.name))
        nodes = len(self.classes) + len(self.makes) + len(self.models)
        if nodes > MAX_NODES:
            raise ManifestError("too many classes, models and makes", got=nodes, do=f"at most {MAX_NODES} nodes")
        members = [label for group in self.equivalent for label in group]
        if any(type(label) is not int or not 0 <= label < len(self.classes) for label in members):
            raise ManifestError("a look-alike group names a label that does not exist", got=self.equivalent)
        if len(set(members)) != len(members) or any(len(group) < 2 for group in self.equivalent):
            raise ManifestError("look-alike groups must be disjoint and have two members or more", got=self.equivalent)

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def _index(self) -> dict[tuple[str, str, int | None], int]:
        return {item.key: label for label, item in enumerate(self.classes)}

    @cached_property
    def _make_index(self) -> dict[str, int]:
        return {make: i for i, make in enumerate(self.makes)}

    @cached_property
    def _model_index(self) -> dict[tuple[str, str], int]:
        return {model: i for i, model in enumerate(self.models)}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """`.name` of every class, in label order."""
        return tuple(item.name for item in self.classes)

    @cached_property
    def makes(self) -> tuple[str, ...]:
        """Every make once, sorted."""
        return tuple(sorted({item.make for item in self.classes}))

    @cached_property
    def models(self) -> tuple[tuple[str, str], ...]:
        """Every (make, model) once, whatever the year, sorted."""
        return tuple(sorted({(item.make, item.model) for item in self.classes}))

    @cached_property
    def make_of(self) -> NDArray[np.int64]:
        """Label of a class -> index into `makes`: total and onto."""
        return _frozen([self._make_index[item.make] for item in self.classes])

    @cached_property
    def model_of(self) -> NDArray[np.int64]:
        """Label of a class -> index into `models`: total and onto."""
        return _frozen([self._model_index[item.make, item.model] for item in self.classes])

    @cached_property
    def lookalike_of(self) -> NDArray[np.int64]:
        """Label of a class -> lowest label of its look-alike group (itself where it has none)."""
        lowest = list(range(len(self.classes)))
        for group in self.equivalent:
            for label in group:
                lowest[label] = min(group)
        return _frozen(lowest)

    def nodes(self, level: str) -> tuple[str, ...]:
        """The names of one level of `TREE`, in label order: makes, models (whatever the year) or classes."""
        models = tuple(VehicleClass(*model).name for model in self.models)
        return {"make": self.makes, "model": models, "class": self.names}[level]

    def parents(self, fine: str, coarse: str) -> NDArray[np.int64]:
        """Label at the finer level -> label at the coarser one: total and onto. A level is its own parent.

        >>> t = Taxonomy.from_rows(["VW", "Audi", "Audi"], ["Golf", "A4", "A4"], [2012, 2008, 2012])
        >>> t.parents("class", "make").tolist(), t.parents("model", "make").tolist()
        ([0, 0, 1], [0, 1])
        """
        of = {"make": self.make_of, "model": self.model_of, "class": np.arange(len(self))}
        if TREE.index(fine) < TREE.index(coarse):
            raise ManifestError("a parent is the coarser level", got=f"{fine} -> {coarse}")
        first = np.unique(of[fine], return_index=True)[1]
        return _frozen(of[coarse][first].tolist())

    def place(self, make: str, model: str, year: int | None = None) -> tuple[int, int, int]:
        """The labels of a vehicle at the levels of `TREE`, -1 where what is told does not decide: a make without a
        model, a model without the year that tells its classes apart, a vehicle that is none of ours.

        >>> t = Taxonomy.from_rows(["Audi", "Audi", "VW"], ["A4", "A4", "Golf"], [2008, 2012, None])
        >>> t.place("Audi", "A4", 2012), t.place("Audi", "A4"), t.place("Audi", ""), t.place("VW", "Golf", None)
        ((0, 0, 1), (0, 0, -1), (0, -1, -1), (1, 1, 2))
        """
        return (
            self._make_index.get(make, -1) if make else -1,
            self._model_index.get((make, model), -1),
            self._index.get((make, model, year), -1),
        )

    def upto(self, level: str) -> Taxonomy:
        """The classes as told down to a level of `TREE`, without those that are not told that far: a make whose models
        are classes too, a model without a year beside the same with one. `place` labels their rows as far as they tell.

        >>> t = Taxonomy.from_rows(["Audi", "Audi", "Audi"], ["", "A4", "A4"], [None, None, 2012])
        >>> t.upto("class").names, t.upto("model").names, t.upto("make").names
        (('Audi A4 2012',), ('Audi A4',), ('Audi',))
        """
        if level == "make":
            return Taxonomy(tuple(VehicleClass(make, "") for make in self.makes if make))
        makes = {item.make for item in self.classes if item.model}
        models = {(item.make, item.model) for item in self.classes if item.year is not None}
        if level == "model":
            return Taxonomy(tuple(VehicleClass(*key) for key in self.models if key[1] or key[0] not in makes))
        kept = [
            label
            for label, item in enumerate(self.classes)
            if (item.model or item.make not in makes)
            and (item.year is not None or (item.make, item.model) not in models)
        ]
        place = {label: new for new, label in enumerate(kept)}
        groups = [[place[label] for label in group if label in place] for group in self.equivalent]
        return Taxonomy(tuple(self.classes[i] for i in kept)).with_equivalent(g for g in groups if len(g) > 1)

    def __contains__(self, key: object) -> bool:
        """Whether a (make, model, year) is a class."""
        return key in self._index

    def index(self, make: str, model: str, year: int | None = None) -> int:
        """The label of a class. Raises ManifestError, with the nearest names, where there is no such class."""
        try:
            return self._index[make, model, year]
        except KeyError:
            name = VehicleClass(make, model, year).name
            near = difflib.get_close_matches(name, self.names, n=3)
            raise ManifestError(
                "no such class in the taxonomy", got=repr(name), do=f"nearest: {near}" if near else None
            ) from None

    def with_equivalent(self, groups: Iterable[Iterable[int]]) -> Taxonomy:
        """The same classes with these look-alike groups."""
        return Taxonomy(self.classes, tuple(tuple(sorted(group)) for group in groups))

    def merge(self, other: Taxonomy) -> Taxonomy:
        """This taxonomy, then the classes only `other` has, in its order: labels of this one stay what they are.

        Look-alike groups of the two that share a class become one.

        >>> a = Taxonomy.from_rows(["VW"], ["Golf"]); b = Taxonomy.from_rows(["VW", "Audi"], ["Golf", "A4"])
        >>> a.merge(b).names
        ('VW Golf', 'Audi A4')
        """
        merged = Taxonomy(self.classes + tuple(item for item in other.classes if item.key not in self))
        theirs = [[merged._index[other.classes[label].key] for label in group] for group in other.equivalent]
        groups: list[set[int]] = []
        for fresh in map(set, [*self.equivalent, *theirs]):
            touching = [group for group in groups if group & fresh]
            groups = [group for group in groups if not group & fresh] + [fresh.union(*touching)]
        return merged.with_equivalent(sorted(map(sorted, groups)))

    @classmethod
    def from_rows(
        cls,
        makes: Sequence[str],
        models: Sequence[str],
        years: Sequence[int | None] | None = None,
        bodies: Sequence[str | None] | None = None,
    ) -> Taxonomy:
        """The distinct (make, model, year) of the rows, sorted: the order of the rows does not matter.

        A class keeps its body where all its rows agree on one. Sequences of unequal length raise ManifestError.
        """
        years = [None] * len(makes) if years is None else years
        bodies = [None] * len(makes) if bodies is None else bodies
        if not len(makes) == len(models) == len(years) == len(bodies):
            raise ManifestError(
                "columns of unequal length",
                got=[len(makes), len(models), len(years), len(bodies)],
                do="one entry a row",
            )
        found: dict[tuple[str, str, int | None], set[str]] = {}
        for make, model, year, body in set(zip(makes, models, years, bodies, strict=True)):
            styles = found.setdefault((make, model, year), set())
            if body:
                styles.add(body)
        order = sorted(found, key=lambda key: (key[0], key[1], -1 if key[2] is None else key[2]))
        return cls(tuple(VehicleClass(*key, body=min(found[key]) if len(found[key]) == 1 else None) for key in order))

    def to_json(self) -> str:
        """The taxonomy as a text of one line a class; `from_json` gives it back."""
        rows = []
        for item in self.classes:
            row: dict[str, str | int] = {"make": item.make, "model": item.model}
            row |= {} if item.year is None else {"year": item.year}
            row |= {} if item.body is None else {"body": item.body}
            rows.append(json.dumps(row, ensure_ascii=False))
        head = f'{{"format": "{_FORMAT}", "version": {_VERSION},\n"equivalent": {json.dumps(self.equivalent)},\n'
        return head + '"classes": [\n' + ",\n".join(rows) + "\n]}\n"

    @classmethod
    def from_json(cls, text: str) -> Taxonomy:
        """Read what `to_json` wrote.

        The text may come from a stranger: its length, the number of nodes and the length of a name are bounded, and
        double keys, unknown keys, double classes and other versions raise ManifestError.
        """
        if len(text) > _MAX_TEXT:
            raise ManifestError("taxonomy text too long", got=f"{len(text)} characters", do=f"at most {_MAX_TEXT}")
        try:
            data = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ManifestError("taxonomy is no JSON", got=error) from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ManifestError("not a taxonomy file", do=f"'format' must be '{_FORMAT}'")
        if data.get("version") != _VERSION:
            raise ManifestError("unknown version of a taxonomy", got=repr(data.get("version")), do=f"need {_VERSION}")
        rows, groups = data.get("classes"), data.get("equivalent", [])
        if not isinstance(rows, list) or not isinstance(groups, list) or not all(isinstance(g, list) for g in groups):
            raise ManifestError("taxonomy needs a list of classes, and look-alike groups as lists of labels")
        classes = []
        for place, row in enumerate(rows):
            if not isinstance(row, dict) or not {"make", "model"} <= set(row) <= {"make", "model", "year", "body"}:
                raise ManifestError(
                    f"class {place} is malformed", got=repr(row)[:80], do="give make, model and at most year and body"
                )
            classes.append(VehicleClass(**row))
        return cls(tuple(classes), tuple(tuple(group) for group in groups))


def _frozen(values: list[int]) -> NDArray[np.int64]:
    array = np.asarray(values, dtype=np.int64)
    array.flags.writeable = False
    return array


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Parsers differ on which of two equal keys wins; a file where it matters is refused.
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ManifestError("a key stands twice in the taxonomy", got=[key for key, _ in pairs][:8])
    return data
