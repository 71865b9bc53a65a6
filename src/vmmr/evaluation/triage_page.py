"""Candidates for new models as one page of HTML: contact sheets of unknown vehicles that look alike.

Like the other pages it needs nothing but itself and holds no script.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from vmmr.evaluation.report import render, write_text

__all__ = ["PICTURES", "SHOWN", "SIDE", "Candidate", "write_triage"]

SHOWN, PICTURES = 60, 12
"""So many candidates are shown, the largest, with so many pictures each."""

SIDE = 200
"""Pixels of the longer side of a picture."""


@dataclass(frozen=True)
class Candidate:
    """A group of unknown vehicles that look alike.

    number: from 1, the largest first. members: rows of its pictures, the most typical first. make: what enough of its
    pictures are answered as, "" where they differ; votes: the share of the most frequent make. nearest: known classes
    with their average distance, nearest first. spread: mean distance of its pictures from one another. within: the
    distance up to which groups are one. pictures: those shown, uint8 [H, W, 3] by path.
    """

    number: int
    members: Sequence[int]
    make: str
    votes: float
    nearest: Sequence[tuple[str, float]]
    spread: float
    within: float
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label that is proposed: it sorts as it is numbered, and no vehicle is called so."""
        return f"candidate {self.number:03}"

    @property
    def known(self) -> bool:
        """Whether it is as near to a known class as pictures of one model are to one another."""
        return self.nearest[0][1] <= self.within


def _thumbnail(pixels: NDArray[np.uint8]) -> Markup:
    """uint8 [H, W, 3] as a small JPEG data URI."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(file, "JPEG", quality=82)
    return Markup("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())


def write_triage(
    path: Path, counts: Mapping[str, Any], candidates: Sequence[Candidate], facts: Mapping[str, str]
) -> Path:
    """Write the page; nothing half-written is ever at `path`. counts: the fields of `vmmr.triage.Triage`. facts: words
    about how it was made."""
    shown = candidates[:SHOWN]
    page = render(
        "triage.html.jinja",
        counts=counts,
        candidates=candidates,
        shown=shown,
        sheets=[{name: _thumbnail(pixels) for name, pixels in candidate.pictures.items()} for candidate in shown],
        facts=facts,
        file_name=lambda name: Path(name).name,
    )
    return write_text(path, page)
