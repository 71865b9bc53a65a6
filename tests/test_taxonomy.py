"""The list of classes: parents, names, look-alikes, and the file it travels in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.errors import ManifestError
from vmmr.taxonomy import BODIES, TREE, Taxonomy, VehicleClass, parse_stanford_name

names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4)
keys = st.tuples(names, names, st.none() | st.integers(1900, 2030))
taxonomies = st.lists(keys, max_size=12, unique=True).map(lambda ks: Taxonomy(tuple(VehicleClass(*k) for k in ks)))


@pytest.mark.parametrize(
    ("name", "make", "model", "year", "body"),
    [
        ("AM General Hummer SUV 2000", "AM General", "Hummer SUV", 2000, "SUV"),
        ("Aston Martin V8 Vantage Coupe 2012", "Aston Martin", "V8 Vantage Coupe", 2012, "Coupe"),
        ("Land Rover LR2 SUV 2012", "Land Rover", "LR2 SUV", 2012, "SUV"),
        ("Ram C/V Cargo Van Minivan 2012", "Ram", "C/V Cargo Van Minivan", 2012, "Minivan"),
        ("Mercedes-Benz 300-Class Convertible 1993", "Mercedes-Benz", "300-Class Convertible", 1993, "Convertible"),
        ("Ford Ranger SuperCab 2011", "Ford", "Ranger SuperCab", 2011, "Pickup"),
        ("Ford F-150 Regular Cab 2007", "Ford", "F-150 Regular Cab", 2007, "Pickup"),
        ("Infiniti G Coupe IPL 2012", "Infiniti", "G Coupe IPL", 2012, None),
        ("Jaguar XK XKR 2012", "Jaguar", "XK XKR", 2012, None),
    ],
)
def test_a_name_of_stanford_cars(name: str, make: str, model: str, year: int, body: str | None) -> None:
    assert parse_stanford_name(name) == VehicleClass(make, model, year, body)
    assert parse_stanford_name(name).name == name


@pytest.mark.parametrize("name", ["", "Audi A4", "Audi 2012", "AM General 2000", "Audi A4 12", "Audi A4 2012x"])
def test_what_is_no_name_of_stanford_cars(name: str) -> None:
    with pytest.raises(ManifestError):
        parse_stanford_name(name)


def test_all_names_of_stanford_cars(shared: Path) -> None:
    mat = scipy.io.loadmat(shared / "data/stanford-cars-devkit/cars_meta.mat", simplify_cells=True)
    official = [str(name) for name in mat["class_names"]]
    taxonomy = Taxonomy(tuple(map(parse_stanford_name, official)))
    assert list(taxonomy.names) == official
    assert (len(taxonomy), len(taxonomy.makes), len(taxonomy.models)) == (196, 49, 189)
    counts = dict(zip(taxonomy.makes, np.bincount(taxonomy.make_of).tolist(), strict=True))
    assert {k: counts[k] for k in ("Chevrolet", "Dodge", "Audi", "Acura", "Land Rover")} == {
        "Chevrolet": 22,
        "Dodge": 15,
        "Audi": 14,
        "Acura": 6,
        "Land Rover": 2,
    }
    assert sum(count == 1 for count in counts.values()) == 19
    twice = [taxonomy.models[i] for i in np.flatnonzero(np.bincount(taxonomy.model_of) == 2)]
    assert [f"{make} {model}" for make, model in twice] == [
        "Audi S4 Sedan",
        "Bentley Continental GT Coupe",
        "Dodge Caliber Wagon",
        "Dodge Durango SUV",
        "Ford F-150 Regular Cab",
        "Honda Odyssey Minivan",
        "Volkswagen Golf Hatchback",
    ]
    assert [make for make in taxonomy.makes if " " in make] == ["AM General", "Aston Martin", "Land Rover"]
    assert {"HUMMER", "AM General", "Dodge", "Ram", "Mercedes-Benz", "Rolls-Royce"} <= set(taxonomy.makes)
    slashed = [item for item in taxonomy.classes if "/" in item.name]
    assert slashed == [VehicleClass("Ram", "C/V Cargo Van Minivan", 2012, "Minivan")]
    assert (len(taxonomy.upto("make")), len(taxonomy.upto("model")), taxonomy.upto("class")) == (49, 189, taxonomy)
    assert taxonomy.upto("model").names == taxonomy.nodes("model")
    for item, make, model in zip(taxonomy.classes, taxonomy.make_of, taxonomy.model_of, strict=True):
        assert taxonomy.place(*item.key) == (make, model, taxonomy.index(*item.key))
        assert taxonomy.place(item.make, "") == (make, -1, -1)
        assert taxonomy.place(item.make, item.model) == (make, model, -1)  # every class has a year
    assert {item.body for item in taxonomy.classes} == {*BODIES, None}
    assert sum(item.year == 2012 for item in taxonomy.classes) == 117


@settings(deadline=None)
@given(taxonomies)
def test_parents_are_total_and_onto(taxonomy: Taxonomy) -> None:
    assert [taxonomy.makes[i] for i in taxonomy.make_of] == [item.make for item in taxonomy.classes]
    assert [taxonomy.models[i] for i in taxonomy.model_of] == [(c.make, c.model) for c in taxonomy.classes]
    assert set(taxonomy.make_of.tolist()) == set(range(len(taxonomy.makes)))
    assert set(taxonomy.model_of.tolist()) == set(range(len(taxonomy.models)))
    assert list(taxonomy.makes) == sorted(set(taxonomy.makes))
    assert [taxonomy.index(*item.key) for item in taxonomy.classes] == list(range(len(taxonomy)))
    assert taxonomy.make_of.dtype == np.int64
    assert not taxonomy.make_of.flags.writeable


@settings(deadline=None)
@given(taxonomies)
def test_every_level_is_told_by_the_finer_ones(taxonomy: Taxonomy) -> None:
    for fine in range(3):
        for coarse in range(fine + 1):
            parents = taxonomy.parents(TREE[fine], TREE[coarse])
            assert len(parents) == len(taxonomy.nodes(TREE[fine]))
            assert sorted(set(parents.tolist())) == list(range(len(taxonomy.nodes(TREE[coarse]))))  # total and onto
            own = np.array([taxonomy.place(*item.key) for item in taxonomy.classes], dtype=np.int64).reshape(-1, 3)
            assert parents[own[:, fine]].tolist() == own[:, coarse].tolist()
    if taxonomy.classes:
        with pytest.raises(ManifestError, match="coarser"):
            taxonomy.parents("make", "model")


@settings(deadline=None)
@given(taxonomies)
def test_what_is_told_down_to_a_level(taxonomy: Taxonomy) -> None:
    for level, key in (("make", lambda c: c.make), ("model", lambda c: (c.make, c.model)), ("class", lambda c: c.key)):
        part = taxonomy.upto(level)
        assert part.upto(level) == part
        assert {key(c) for c in part.classes} == {key(c) for c in taxonomy.classes}
        assert part.nodes(level) == part.names


def test_what_is_not_told_to_the_end_is_no_class() -> None:
    rows = [("A", "", None), ("A", "x", None), ("A", "x", 2000), ("A", "y", None), ("B", "", None), ("", "van", None)]
    taxonomy = Taxonomy(tuple(VehicleClass(*row) for row in rows)).with_equivalent([(0, 1), (2, 3)])
    fine = taxonomy.upto("class")
    assert [item.key for item in fine.classes] == [rows[i] for i in (2, 3, 4, 5)]
    assert fine.equivalent == ((0, 1),)
    assert [fine.place(*row) for row in rows] == [
        (1, -1, -1),
        (1, 1, -1),
        (1, 1, 0),
        (1, 2, 1),
        (2, 3, 2),
        (-1, 0, 3),
    ]
    assert fine.place("C", "x", 2000) == (-1, -1, -1)
    assert taxonomy.upto("make").names == ("A", "B")
    assert taxonomy.upto("model").names == ("van", "A x", "A y", "B")


@settings(deadline=None)
@given(taxonomies)
def test_json_gives_the_taxonomy_back(taxonomy: Taxonomy) -> None:
    if len(taxonomy) > 3:
        taxonomy = taxonomy.with_equivalent([[2, 0]])
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy


@settings(deadline=None)
@given(taxonomies, taxonomies)
def test_merging_keeps_labels_and_adds_what_is_new(a: Taxonomy, b: Taxonomy) -> None:
    merged = a.merge(b)
    assert merged.classes[: len(a)] == a.classes
    assert {c.key for c in merged.classes} == {c.key for c in a.classes} | {c.key for c in b.classes}
    assert merged.merge(b) == merged == merged.merge(a)


@settings(deadline=None)
@given(st.lists(keys, max_size=12), st.randoms())
def test_from_rows_does_not_depend_on_their_order(rows: list[tuple[str, str, int | None]], random: object) -> None:
    def build(some: list[tuple[str, str, int | None]]) -> Taxonomy:
        return Taxonomy.from_rows([r[0] for r in some], [r[1] for r in some], [r[2] for r in some])

    mixed = rows + rows[::2]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert build(mixed) == build(rows)
    assert {c.key for c in build(rows).classes} == set(rows)


def test_the_body_stays_where_the_rows_agree() -> None:
    taxonomy = Taxonomy.from_rows(["A"] * 5, ["x", "x", "x", "y", "y"], None, ["SUV", "", None, "Van", "SUV"])
    assert [(c.model, c.body) for c in taxonomy.classes] == [("x", "SUV"), ("y", None)]


def test_lookalikes() -> None:
    taxonomy = Taxonomy.from_rows(["A"] * 4, ["p", "q", "r", "s"]).with_equivalent([(3, 1)])
    assert taxonomy.lookalike_of.tolist() == [0, 1, 2, 1]
    other = Taxonomy.from_rows(["A", "A", "B"], ["q", "r", "t"]).with_equivalent([(0, 1, 2)])
    assert taxonomy.merge(other).equivalent == ((1, 2, 3, 4),)
    for bad in ([(0,)], [(0, 4)], [(0, 1), (1, 2)], [(0, -1)]):
        with pytest.raises(ManifestError, match="look-alike"):
            taxonomy.with_equivalent(bad)


def test_an_unknown_class_is_told_with_its_neighbours() -> None:
    taxonomy = Taxonomy.from_rows(["Audi", "VW"], ["A4", "Golf"], [2012, 2012])
    assert ("Audi", "A4", 2012) in taxonomy
    assert ("Audi", "A4", None) not in taxonomy
    with pytest.raises(ManifestError, match=r"Audi A4 2013.*Audi A4 2012"):
        taxonomy.index("Audi", "A4", 2013)


@pytest.mark.parametrize(
    "item",
    [
        VehicleClass("", ""),
        VehicleClass("two\nlines", "x"),
        VehicleClass("x", "y" * 201),
        VehicleClass("x", "y", 12),
        VehicleClass("x", "y", True),
        VehicleClass("x", "y", 2000.0),  # type: ignore[arg-type]
        VehicleClass(["x"], "y"),  # type: ignore[arg-type]
        VehicleClass("x", "y", None, 0),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_class(item: VehicleClass) -> None:
    with pytest.raises(ManifestError):
        Taxonomy((item,))


def test_limits_and_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ManifestError, match="twice"):
        Taxonomy((VehicleClass("A", "x", 2000, "SUV"), VehicleClass("A", "x", 2000, "Van")))
    monkeypatch.setattr("vmmr.taxonomy.MAX_NODES", 101)
    for count, fits in ((50, True), (51, False), (102, False)):  # as many models as classes, and one make
        many = [f"m{i}" for i in range(count)]
        if fits:
            assert len(Taxonomy.from_rows(["A"] * count, many)) == count
        else:
            with pytest.raises(ManifestError, match="at most 101"):
                Taxonomy.from_rows(["A"] * count, many)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format="x"),
        lambda d: d.update(version=2),
        lambda d: d.update(version="1"),
        lambda d: d.update(classes={}),
        lambda d: d.update(equivalent=[3]),
        lambda d: d.update(equivalent=[[0, [1]]]),
        lambda d: d.update(equivalent=[[0, True]]),
        lambda d: d["classes"].append(d["classes"][0]),
        lambda d: d["classes"].append({"make": "x"}),
        lambda d: d["classes"].append({"make": "x", "model": "y", "colour": "z"}),
        lambda d: d["classes"].append({"make": "x", "model": None}),
        lambda d: d["classes"].append({"make": "x", "model": "y", "year": "2000"}),
        lambda d: d["classes"].append(7),
    ],
)
def test_a_damaged_file_is_refused(change: object) -> None:
    data = json.loads(Taxonomy.from_rows(["A", "B"], ["x", "y"]).to_json())
    change(data)  # type: ignore[operator]
    with pytest.raises(ManifestError):
        Taxonomy.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"format": "vmmr-taxonomy", "version": 1, "version": 1, "classes": []}',
        "[" * 100_000,
        '{"format": "vmmr-taxonomy", "version": ' + "9" * 5000 + "}",
        " " * (32 * 2**20 + 1),
    ],
)
def test_what_is_no_file_is_refused(text: str) -> None:
    with pytest.raises(ManifestError):
        Taxonomy.from_json(text)
