"""What a recogniser says: frozen, printable, free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Answer", "Box", "Candidate"]


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
class Answer:
    """The most probable class and, in `alternatives`, the runners-up by falling confidence."""

    make: str
    model: str
    year: int | None
    confidence: float
    alternatives: tuple[Candidate, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for JSON."""
        document = asdict(self)
        document["alternatives"] = list(document["alternatives"])
        return document

    def __str__(self) -> str:
        year = f" {self.year}" if self.year is not None else ""
        return f"{self.make} {self.model}{year} ({self.confidence:.1%})"
