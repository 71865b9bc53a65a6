"""What we recommend for one network at one network's cost: strong noise, and every image with statistics of its own.

Its bundle says which vehicles it does not know.
"""

from __future__ import annotations

from vmmr.config import TrainConfig
from vmmr.recipes.plain_noise import plain_noise

__all__ = ["robust"]


def robust() -> TrainConfig:
    """`plain_noise` on standardised images: light, haze and contrast do not reach the network."""
    return plain_noise().with_(statistics="image", unknown="knn_pca")
