"""What we recommend where pictures have makes: `robust` with a head for the make beside that for the class."""

from __future__ import annotations

from vmmr.config import TrainConfig
from vmmr.recipes.robust import robust

__all__ = ["levels"]


def levels() -> TrainConfig:
    """Strong noise on standardised images, sibling heads, losses summed as they are."""
    return robust().with_(levels=["make", "class"])
