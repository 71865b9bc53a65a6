"""Learning a new car: classes that come after training, without the images of the old ones."""

from __future__ import annotations

from vmmr.incremental.banks import BankedNetwork

__all__ = ["BankedNetwork"]
