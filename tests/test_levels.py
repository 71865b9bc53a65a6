"""What a network answers, and how wide it is."""

from __future__ import annotations

import pytest

from vmmr.errors import ConfigError
from vmmr.levels import LEVELS, Levels, year_of, year_value
from vmmr.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(["Audi", "Audi", "Audi", "VW"], ["A4", "A4", "A6", "Golf"], [2008, 2012, 2012, 2012])


def test_levels_stand_in_one_order_with_their_widths() -> None:
    values = {"body": ("Sedan", "SUV"), "year": ("2008", "2012")}
    levels = Levels(CARS, ("year_value", "year", "body", "class", "model", "make"), values)
    assert levels.names == tuple(name for name in LEVELS if name in levels.names)
    assert levels.widths == {"make": 2, "model": 3, "class": 4, "body": 2, "year": 2, "year_value": 1}
    assert (levels.tree, levels.side, levels.finest) == (
        ("make", "model", "class"),
        ("body", "year", "year_value"),
        "class",
    )
    assert levels.nodes("model") == ("Audi A4", "Audi A6", "VW Golf")
    assert levels.nodes("year") == ("2008", "2012")
    assert levels.parents("model", "make").tolist() == [0, 0, 1]


def test_levels_end_where_the_taxonomy_does() -> None:
    for finest, width in (("make", 2), ("model", 3), ("class", 4)):
        assert Levels(CARS.upto(finest), (finest,)).widths == {finest: width}
    with pytest.raises(ConfigError, match="finer"):
        Levels(CARS, ("make", "model"))


@pytest.mark.parametrize(
    ("names", "values"),
    [
        ((), {}),
        (("make", "make"), {}),
        (("make", "wheels"), {}),
        (("body",), {"body": ("SUV",)}),
        (("class", "body"), {}),
        (("class", "body"), {"body": ()}),
        (("class",), {"body": ("SUV",)}),
        (("class", "year_value"), {"year_value": ("2000",)}),
    ],
)
def test_what_are_no_levels(names: tuple[str, ...], values: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError):
        Levels(CARS, names, values)


def test_a_year_as_a_number() -> None:
    assert [year_of(year_value(year)) for year in range(1950, 2040)] == list(range(1950, 2040))
    assert year_of(year_value(2012) + 0.04) == 2012
    assert year_of(year_value(2012) + 0.06) == 2013
