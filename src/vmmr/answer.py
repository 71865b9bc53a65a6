"""What a recogniser says: frozen, printable, free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Answer", "Box", "Candidate", "LevelAnswer"]


_DOUBTS = {
    "unsure": "unsure",
    "unknown_vehicle": "unknown vehicle",
    "not_a_vehicle": "not a vehicle",
    "too_small": "too small",
    "low_quality": "bad picture",
}


@dataclass(frozen=True, slots=True)
class Box:
    """A region in pixels, 0-based and half-open: columns left..right-1, rows top..bottom-1."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One possible answer. `confidence` is a probability in [0, 1]; `year` is None where the class has none."""

    make: str
    model: str
    year: int | None
    confidence: float


@dataclass(frozen=True, slots=True)
class LevelAnswer:
    """What is said at one level by itself. `value`: a name, or a year as text. `confidence`: the probability that it is
    right, None where the level answers a number."""

    level: str
    value: str
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said, and in `alternatives` the other candidates by falling confidence.

    A network with levels says the finest one that it is sure of: `level` is its name ("make", "model", "class"), and
    what is finer is "" or None; "" where it is sure of none. `confidence` is that of what is said, or of the best
    candidate where nothing is. `levels` holds all of them, the unsure ones too, and side attributes.

    `known`: whether the vehicle is one that the network learned; None where the bundle cannot tell. `reason`: "ok";
    "unsure", where no level is sure or the network gave no finite numbers; or why what is said should not be trusted:
    "unknown_vehicle", "not_a_vehicle", "too_small", "low_quality", where `known` is False.

    >>> print(Answer("Audi", "S4 Sedan", 2012, 0.41, known=False, reason="unknown_vehicle"))
    unknown vehicle, perhaps Audi S4 Sedan 2012 (41.0%)
    """

    make: str
    model: str
    year: int | None
    confidence: float
    alternatives: tuple[Candidate, ...] = ()
    level: str = "class"
    levels: tuple[LevelAnswer, ...] = ()
    known: bool | None = None
    reason: str = "ok"

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for JSON."""
        document = asdict(self)
        document["alternatives"] = list(document["alternatives"])
        document["levels"] = list(document["levels"])
        return document

    def __str__(self) -> str:
        said = " ".join(str(part) for part in (self.make, self.model, self.year) if part not in ("", None))
        doubt = _DOUBTS.get(self.reason, "")
        return f"{', perhaps '.join(part for part in (doubt, said) if part) or 'unsure'} ({self.confidence:.1%})"
