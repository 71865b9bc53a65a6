"""The catalogue: makes with a family face, models with proportions, years with small differences, single vehicles.

Everything follows from one seed. What a recogniser can hold on to is layered on purpose: models of one make share the
face, models of one body share the proportions, the years of a model differ in details, and the vehicles of one year
differ in colour and marks only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vmmr.data.rendered.body import BODIES, Shape
from vmmr.errors import ConfigError

__all__ = ["COLOURS", "MARKS", "MARK_VARIANTS", "Camera", "Face", "Model", "Trim", "Vehicle", "World"]

COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (0.86, 0.86, 0.84),
    "silver": (0.62, 0.64, 0.66),
    "grey": (0.30, 0.31, 0.33),
    "black": (0.05, 0.05, 0.06),
    "red": (0.58, 0.06, 0.06),
    "blue": (0.08, 0.17, 0.48),
    "sky": (0.33, 0.54, 0.70),
    "green": (0.08, 0.27, 0.15),
    "beige": (0.64, 0.56, 0.42),
    "brown": (0.26, 0.15, 0.09),
    "yellow": (0.80, 0.60, 0.08),
    "orange": (0.76, 0.30, 0.05),
}
"""Paint names and their diffuse colours, linear red, green, blue in [0, 1]."""

COLOUR_SHARES = (20, 16, 14, 14, 9, 9, 3, 4, 4, 3, 2, 2)
OTHERS = ("hatch", "pickup", "van", "bus", "truck")
"""Dealt to the makes in turn, after a sedan and an SUV for each, so that every body occurs."""
MARK_COLOURS = ("white", "black", "red", "blue", "yellow", "orange", "sky")
MARKS = ("none", "door sticker", "bonnet stripe", "roof box", "roof sign", "tinted", "dent", "rear sticker", "dirt")
"""Identity marks a vehicle may carry, next to its plate and its colour."""
MARK_VARIANTS = 4

MAKES = (
    "Aldera", "Borvik", "Castane", "Dravon", "Elmstad", "Fjordan", "Galvane", "Hestur", "Ilvano", "Jorvel", "Kastrel",
    "Lumara", "Morvane", "Nordika", "Orlec", "Pavonia", "Quillon", "Rostad", "Sarvik", "Tavore", "Ulmen", "Vandar",
    "Wexley", "Zorane",
)  # fmt: skip
FIRST = ("Al", "Bo", "Ca", "De", "El", "Fi", "Go", "Ha", "Ki", "Lo", "Mi", "Na", "Or", "Pe", "Ri", "Sa", "To", "Ve")
LAST = ("ra", "vento", "lis", "mont", "dor", "ta", "nix", "sel", "ron", "via", "kas", "len", "mira", "stra", "go")

GRILLES = ("wide", "shield", "twin", "slot", "bars", "hexagon", "closed", "mesh")
LAMPS = ("slim", "round", "tall", "slanted", "twin round", "block", "split", "hook")
TAILS = ("wide", "tall", "bar", "round", "corner", "twin", "slim", "block")
BADGES = ("disc", "diamond", "bar", "square", "triangle", "ring")
INTAKES = ("wide", "sides", "centre", "lip")


@dataclass(frozen=True)
class Face:
    """The family face that all models of a make share; sizes are shares of the front's half width and height."""

    grille: str
    grille_width: float
    grille_height: float
    grille_at: float
    bars: int
    chrome: bool
    lamp: str
    lamp_width: float
    lamp_height: float
    lamp_at: float
    slant: float
    intake: str
    badge: str
    badge_colour: tuple[float, float, float]
    tail: str
    tail_height: float
    spokes: int
    rim: float
    lean: float
    """How far the bonnet's edge stands back from the bumper, metres."""


@dataclass(frozen=True)
class Trim:
    """What one year of a model has: small details over the family face."""

    year: int
    grille_bars: int
    lamp_line: bool
    lamp_stretch: float
    fogs: bool
    strip: bool
    rails: bool
    spoiler: bool
    dark_bumper: bool
    spokes: int
    tail_stretch: float


@dataclass(frozen=True)
class Model:
    """One model of a make: a name, a body and its proportions, and its years."""

    make: str
    name: str
    body: str
    shape: Shape
    face: Face
    trims: tuple[Trim, ...]


@dataclass(frozen=True)
class Vehicle:
    """One single vehicle, recognisable again by its colour, plate and marks."""

    id: str
    model: Model
    trim: Trim
    colour: str
    paint: tuple[float, float, float]
    mark: str
    mark_colour: tuple[float, float, float]
    variant: int
    """Which of the mark's places and sizes, 0 to `MARK_VARIANTS` - 1."""
    plate: int
    """The seed of the plate's pattern."""


@dataclass(frozen=True)
class Camera:
    """A fixed camera: metres above the ground, metres from the middle of the lane, and where it looks.

    `direction` is the world direction in which it looks, degrees counter-clockwise from x; `gain` its exposure and
    `warmth` its colour cast.
    """

    id: str
    background: str
    height: float
    distance: float
    direction: float
    gain: float
    warmth: float


@dataclass(frozen=True)
class World:
    """A vehicle world: `makes * models_per_make` models, each in `years` years, each year a fleet of single vehicles.

    seed: everything follows from it. fleet: single vehicles a model and year. cameras: fixed cameras.
    Raises ConfigError for counts that the catalogue cannot give.

    >>> world = World(seed=3, makes=2, models_per_make=2)
    >>> len(world.models), world.models[0].make != world.models[2].make
    (4, True)
    >>> world.vehicle(0, 1, 7) == World(seed=3, makes=2, models_per_make=2).vehicle(0, 1, 7)
    True
    """

    seed: int = 0
    makes: int = 6
    models_per_make: int = 4
    years: int = 2
    fleet: int = 40
    cameras: int = 6

    def __post_init__(self) -> None:
        limits = {"makes": len(MAKES), "models_per_make": 12, "years": 5, "fleet": 100_000, "cameras": 64}
        for name, most in limits.items():
            if not 1 <= (value := getattr(self, name)) <= most:
                raise ConfigError(f"{name} of a rendered world out of range", got=value, do=f"pass 1 to {most}")
        if self.seed < 0:
            raise ConfigError("negative seed of a rendered world", got=self.seed, do="pass 0 or more")

    def random(self, *key: int) -> np.random.Generator:
        """A generator for one purpose, named by whole numbers."""
        return np.random.default_rng([self.seed, *key])

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """All models, make by make."""
        rng = self.random(1)
        makes = sorted(rng.choice(MAKES, self.makes, replace=False))
        syllables = [a + b for a in FIRST for b in LAST]
        names = iter(rng.permutation(syllables))
        faces = _faces(rng, self.makes)
        deck = iter(
            np.concatenate([rng.permutation(OTHERS), *(rng.permutation([*OTHERS, "sedan", "suv"]) for _ in range(40))])
        )
        models = []
        for make, face in zip(makes, faces, strict=True):
            style = rng.uniform(-1, 1, 4)
            for body in [
                *("sedan", "suv")[: self.models_per_make],
                *(next(deck) for _ in range(self.models_per_make - 2)),
            ]:
                shape = BODIES[str(body)].varied(style, rng)
                shape = replace(shape, lean=face.lean * shape.lean)
                models.append(Model(str(make), str(next(names)), str(body), shape, face, _trims(rng, face, self.years)))
        return tuple(models)

    @cached_property
    def fixed_cameras(self) -> tuple[Camera, ...]:
        """The world's cameras, from eye level to a bridge over the road."""
        rng = self.random(2)
        heights = np.resize([1.5, 4.5, 2.4, 6.5, 1.1, 3.4, 8.0, 1.9], self.cameras)
        return tuple(
            Camera(
                id=f"camera-{i:02d}",
                background=("street", "motorway", "suburb", "depot", "field", "quay")[i % 6],
                height=float(h * rng.uniform(0.9, 1.1)),
                distance=float(rng.uniform(11, 17) + 0.8 * h),
                direction=float(rng.uniform(0, 360)),
                gain=float(rng.uniform(0.85, 1.15)),
                warmth=float(rng.uniform(-0.08, 0.08)),
            )
            for i, h in enumerate(heights)
        )

    def vehicle(self, model: int, year: int, number: int) -> Vehicle:
        """Vehicle `number` of the fleet of `models[model].trims[year]`. Raises ConfigError outside the fleet."""
        given = {"model": (model, len(self.models)), "year": (year, self.years), "number": (number, self.fleet)}
        for name, (value, end) in given.items():
            if not 0 <= value < end:
                raise ConfigError(f"no such {name} in the rendered world", got=value, do=f"pass 0 to {end - 1}")
        rng = self.random(3, model, year, number)
        body = self.models[model].body
        colour = list(COLOURS)[
            int(np.searchsorted(np.cumsum(COLOUR_SHARES), rng.integers(sum(COLOUR_SHARES)), "right"))
        ]
        paint = np.clip(np.array(COLOURS[colour]) * rng.uniform(0.85, 1.15) + rng.uniform(-0.02, 0.02, 3), 0.02, 0.92)
        barred = {"bus": ("roof", "bonnet"), "truck": ("roof", "bonnet"), "van": ("bonnet",), "pickup": ("roof",)}
        marks = [m for m in MARKS if not m.startswith(barred.get(body, ("-",)))]
        return Vehicle(
            id=f"v{model:03d}-{year}-{number:05d}",
            model=self.models[model],
            trim=self.models[model].trims[year],
            colour=colour,
            paint=(float(paint[0]), float(paint[1]), float(paint[2])),
            mark=marks[int(rng.integers(len(marks)))],
            mark_colour=COLOURS[MARK_COLOURS[int(rng.integers(len(MARK_COLOURS)))]],
            plate=int(rng.integers(2**31)),
            variant=int(rng.integers(MARK_VARIANTS)),
        )


def _faces(rng: np.random.Generator, makes: int) -> list[Face]:
    """One face a make; the kinds repeat only after each has been used."""

    def deal(kinds: tuple[str, ...]) -> list[str]:
        return [str(k) for _ in range(-(-makes // len(kinds))) for k in rng.permutation(kinds)]

    kinds = zip(deal(GRILLES), deal(LAMPS), deal(TAILS), deal(BADGES), deal(INTAKES), range(makes), strict=False)
    return [
        Face(
            grille=grille,
            grille_width=rng.uniform(0.46, 0.64),
            grille_height=rng.uniform(1.0, 1.25),
            grille_at=rng.uniform(0.60, 0.68),
            bars=int(rng.integers(2, 6)),
            chrome=bool(rng.random() < 0.6),
            lamp=lamp,
            lamp_width=rng.uniform(1.0, 1.25),
            lamp_height=rng.uniform(1.1, 1.4),
            lamp_at=rng.uniform(0.70, 0.78),
            slant=rng.uniform(-0.03, 0.10),
            intake=intake,
            badge=badge,
            badge_colour=COLOURS[str(rng.choice(["silver", "blue", "red", "black", "yellow", "green"]))],
            tail=tail,
            tail_height=rng.uniform(0.66, 0.76),
            spokes=int(rng.choice([5, 6, 7, 8, 10])),
            rim=rng.uniform(0.62, 0.74),
            lean=rng.uniform(0.5, 1.3),
        )
        for grille, lamp, tail, badge, intake, _ in kinds
    ]


def _trims(rng: np.random.Generator, face: Face, years: int) -> tuple[Trim, ...]:
    """The years of one model: four years apart, each with a few details changed from the one before."""
    trim = Trim(
        year=int(rng.integers(2010, 2014)),
        grille_bars=face.bars,
        lamp_line=False,
        lamp_stretch=1.0,
        fogs=bool(rng.random() < 0.5),
        strip=bool(rng.random() < 0.4),
        rails=bool(rng.random() < 0.4),
        spoiler=False,
        dark_bumper=bool(rng.random() < 0.3),
        spokes=face.spokes,
        tail_stretch=1.0,
    )
    trims = [trim]
    for _ in range(years - 1):
        flips = {
            n: not getattr(trim, n) for n in rng.choice(["fogs", "strip", "rails", "spoiler", "dark_bumper"], 2, False)
        }
        trim = replace(
            trim,
            year=trim.year + 4,
            grille_bars=trim.grille_bars + int(rng.choice([-1, 1, 2])),
            lamp_line=not trim.lamp_line,
            lamp_stretch=trim.lamp_stretch * rng.uniform(0.80, 0.92),
            spokes=trim.spokes + int(rng.choice([-1, 1, 3])),
            tail_stretch=trim.tail_stretch * rng.uniform(0.75, 1.25),
            **flips,
        )
        trims.append(trim)
    return tuple(trims)
