"""Open-set protocols: nothing held out reaches training, one draw serves all, and a draw survives a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vmmr.data.manifest import Manifest
from vmmr.data.openset import OpenSetProtocol, apply_protocol, draw_protocol, other_pictures
from vmmr.errors import ConfigError, ManifestError

kinds = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 4), st.sampled_from([None, 2008, 2012])), min_size=12, max_size=60
)


def cars(makes: int = 8, models: int = 4, years: int = 2, images: int = 3) -> Manifest:
    """Every class has `images` rows of train and one of test."""
    rows = [
        (f"make{a}", f"model{a}{b}", 2000 + y, i)
        for a in range(makes)
        for b in range(models)
        for y in range(years)
        for i in range(images + 1)
    ]
    return Manifest.from_columns(
        {
            "path": [f"{make}/{model}/{year}/{i}.jpg" for make, model, year, i in rows],
            "make": [row[0] for row in rows],
            "model": [row[1] for row in rows],
            "year": [row[2] for row in rows],
            "split": ["test" if row[3] == images else "train" for row in rows],
        }
    )


@settings(deadline=None, max_examples=60)
@given(kinds, st.integers(0, 50), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.0, 0.1, 0.3]))
def test_a_draw_divides_the_classes(
    rows: list[tuple[int, int, int | None]], seed: int, models: float, makes: float
) -> None:
    manifest = Manifest.from_columns(
        {
            "path": [f"{i}.jpg" for i in range(len(rows))],
            "make": [f"make{row[0]}" for row in rows],
            "model": [f"m{row[1]}" for row in rows],
            "year": [row[2] for row in rows],
        }
    )
    try:
        protocol = draw_protocol(manifest, models=models, makes=makes, seed=seed)
    except ConfigError:  # one make alone, or no make with two models
        by_make = {make: {m for a, m, _ in rows if a == make} for make, _, _ in rows}
        assert len(by_make) < 3 or sum(len(found) > 1 for found in by_make.values()) < 3
        return
    every = {item.key for item in manifest.taxonomy.classes}
    parts = [set(protocol.known), set(protocol.models), set(protocol.makes)]
    assert set.union(*parts) == every
    assert sum(map(len, parts)) == len(every)
    known_makes = {key[0] for key in protocol.known}
    assert {key[0] for key in protocol.models} <= known_makes
    assert not {key[0] for key in protocol.makes} & known_makes
    # A model goes with all its years.
    assert not {key[:2] for key in protocol.models} & {key[:2] for key in protocol.known}
    assert (len(protocol.makes) > 0) == (makes > 0)
    order = np.random.default_rng(seed).permutation(len(rows))
    assert draw_protocol(manifest.select(order), models=models, makes=makes, seed=seed) == protocol
    assert OpenSetProtocol.from_json(protocol.to_json()) == protocol


def test_shares_are_met_as_nearly_as_whole_makes_and_models_allow() -> None:
    manifest = cars(makes=10, models=5, years=2)  # 100 classes, 10 a make, 2 a model
    seen = set()
    for seed in range(20):
        protocol = draw_protocol(manifest, models=0.16, makes=0.2, seed=seed)
        assert (len(protocol.known), len(protocol.models), len(protocol.makes)) == (64, 16, 20)
        seen.add((protocol.models, protocol.makes))
    assert len(seen) > 15
    assert len(draw_protocol(manifest, models=0.05, makes=0.0).models) == 6  # 2 a model: 4 or 6, halves up


def test_no_image_of_a_held_out_class_is_learned_from() -> None:
    manifest = cars()
    protocol = draw_protocol(manifest, seed=3)
    sets = apply_protocol(manifest, protocol)
    known = set(protocol.known)
    assert {kind[:3] for kind in sets.known.vehicles[0]} == known
    assert {item.key for item in sets.known.taxonomy.classes} == known
    assert (sets.known.labels >= 0).all()
    assert sorted(set(sets.known.labels.tolist())) == list(range(len(known)))
    for name in ("models", "makes"):
        part = getattr(sets, name)
        assert {kind[:3] for kind in part.vehicles[0]} == set(getattr(protocol, name))
        assert set(part.splits.tolist()) == {"test"}
        assert (part.labels == -1).all()
        assert not set(part.path_list()) & set(sets.known.path_list())
    assert len(sets.known) + len(sets.models) + len(sets.makes) + sets.unused == len(manifest)
    assert sets.unused == 3 * (len(protocol.models) + len(protocol.makes))  # their training rows


def test_without_the_split_all_rows_of_held_out_classes_are_judged() -> None:
    manifest = cars().with_splits([""] * len(cars()))
    protocol = draw_protocol(manifest)
    sets = apply_protocol(manifest, protocol)
    assert (len(sets.models), len(sets.makes)) == (4 * len(protocol.models), 4 * len(protocol.makes))
    assert sets.unused == 0


def test_a_picture_under_two_names_is_used_nowhere() -> None:
    manifest = cars()
    protocol = draw_protocol(manifest, seed=1)
    part = ["known" if kind[:3] in protocol.known else "held" for kind in manifest.vehicles[0]]
    of = np.array(part)[manifest.vehicles[1]]
    known = np.flatnonzero((of == "known") & (manifest.splits == "train"))[:2]
    held = np.flatnonzero((of == "held") & (manifest.splits == "test"))[:2]
    groups = np.full(len(manifest), -1)
    groups[[known[0], held[0]]] = 7  # one photograph, two names
    groups[[known[1]]] = 8  # by itself
    groups[np.flatnonzero(of == "held")[-2:]] = 9  # twice among the held-out ones: no harm
    plain, aware = (apply_protocol(manifest, protocol, groups=g) for g in (None, groups))
    paths = manifest.path_list()
    gone = {paths[known[0]], paths[held[0]]}
    assert set(plain.known.path_list()) - set(aware.known.path_list()) == {paths[known[0]]}
    left = [set(s.models.path_list()) | set(s.makes.path_list()) for s in (plain, aware)]
    assert left[0] - left[1] == {paths[held[0]]}
    assert aware.unused == plain.unused + len(gone)


def test_vehicle_and_file_join_pictures_as_well() -> None:
    columns = {
        "path": ["a", "b", "same", "same", "c", "d"],
        "make": ["A", "A", "A", "A", "B", "B"],
        "model": ["x", "y", "x", "y", "z", "z"],
        "vehicle_id": ["v1", "v1", "", "", "", ""],
    }
    protocol = OpenSetProtocol(0, (("A", "x", None), ("B", "z", None)), (("A", "y", None),), ())
    sets = apply_protocol(Manifest.from_columns(columns), protocol)
    assert (len(sets.known), len(sets.models), sets.unused) == (2, 0, 4)
    assert sets.known.table["path"].to_pylist() == ["c", "d"]


def test_held_out_classes_that_look_like_known_ones_are_not_judged() -> None:
    manifest = cars(makes=3, models=2, years=1)
    protocol = OpenSetProtocol(
        0,
        known=(("make0", "model00", 2000), ("make1", "model10", 2000), ("make1", "model11", 2000)),
        models=(("make0", "model01", 2000),),
        makes=(("make2", "model20", 2000), ("make2", "model21", 2000)),
    )
    # Labels 0..5 in order: a known one beside a held-out model and a held-out make; two known ones; two of one make.
    for groups, models, makes in (
        ([(0, 1)], 0, 2),
        ([(0, 4)], 1, 1),
        ([(2, 3)], 1, 2),
        ([(4, 5)], 1, 2),
        ([(0, 1, 4, 5)], 0, 0),
    ):
        marked = manifest.with_taxonomy(manifest.taxonomy.with_equivalent(groups))
        sets = apply_protocol(marked, protocol)
        assert (len(sets.models), len(sets.makes)) == (models, makes)
        assert len(sets.known) == 12
        kept = ((1, 2),) if groups == [(2, 3)] else ()
        assert sets.known.taxonomy.equivalent == kept


def test_a_class_without_a_place_is_named() -> None:
    manifest = cars()
    protocol = draw_protocol(cars(makes=7), seed=0)
    with pytest.raises(ManifestError, match=r"8 classes are not in the protocol.*make7 model70 2000"):
        apply_protocol(manifest, protocol)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"models": 1.0}, "shares"),
        ({"models": 0.6, "makes": 0.6}, "shares"),
        ({"makes": -0.1}, "shares"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_draw_that_makes_no_sense_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw_protocol(cars(), **options)  # type: ignore[arg-type]


def test_classes_that_cannot_give_it_are_refused() -> None:
    with pytest.raises(ConfigError, match="no makes can be held out"):
        draw_protocol(cars(makes=1))
    with pytest.raises(ConfigError, match="no models can be held out"):
        draw_protocol(cars(models=1))
    bare = Manifest.from_columns({"path": list("abcd"), "model": ["w", "x", "y", "z"]})
    with pytest.raises(ConfigError, match="no makes"):
        draw_protocol(bare)
    assert len(draw_protocol(bare, makes=0.0, models=0.5).models) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"seed": "0"},
        {"known": []},
        {"known": [["A", "x"]] * 2},
        {"known": [["A"]]},
        {"known": [[1, "x"]]},
        {"known": [["A", "x", "new"]]},
        {"models": [["A", "x", None]]},
        {"models": [["C", "x", None]]},
        {"makes": [["A", "z", None]]},
        {"makes": None},
    ],
)
def test_a_text_that_is_no_protocol_is_refused(change: dict[str, object]) -> None:
    good = {
        "format": "vmmr-openset", "version": 1, "seed": 0,
        "known": [["A", "x", None]], "models": [["A", "y", None]], "makes": [["B", "z", 2012]],
    }  # fmt: skip
    assert OpenSetProtocol.from_json(json.dumps(good)).makes == (("B", "z", 2012),)
    with pytest.raises(ManifestError):
        OpenSetProtocol.from_json(json.dumps(good | change))
    with pytest.raises(ManifestError, match="no text"):
        OpenSetProtocol.from_json("[" * 100_000)


def test_other_pictures_are_all_below_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "deep/a.JPG", "deep/er/c.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = other_pictures(tmp_path)
    assert found.table["path"].to_pylist() == ["b.png", "deep/a.JPG", "deep/er/c.jpeg"]
    assert all(Path(path).is_file() for path in found.path_list())
    some = [other_pictures(tmp_path, most=2, seed=seed).table["path"].to_pylist() for seed in range(20)]
    assert all(len(paths) == 2 and paths == sorted(paths) for paths in some)
    assert len({tuple(paths) for paths in some}) == 3
    with pytest.raises(ManifestError, match="no picture"):
        other_pictures(tmp_path / "nowhere")


def test_real_cars_give_all_three(shared: Path) -> None:
    labels = shared / "data" / "stanford-cars-160" / "labels.csv"
    if not labels.is_file():
        pytest.skip("Stanford Cars are not here")
    manifest = Manifest.load(labels)
    protocol = draw_protocol(manifest, seed=0)
    sets = apply_protocol(manifest, protocol)
    assert len(manifest.taxonomy) == 196
    assert abs(len(protocol.models) - 29.4) <= 2
    assert abs(len(protocol.makes) - 29.4) <= 6
    assert min(len(sets.models), len(sets.makes)) > 300
    assert {"train", "test"} == set(sets.known.splits.tolist())
