"""Small bundles of every kind of network."""

from __future__ import annotations

import pytest
import torch

from vmmr.data.preprocess import Preprocess
from vmmr.export.bundle import Bundle, ModelSpec, build_network
from vmmr.levels import HierarchySpec
from vmmr.models import Backbone
from vmmr.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(["Audi", "Audi", "VW"], ["A4", "A6", "Golf"])
LEVELS = HierarchySpec(("make", "class", "body"), {"body": ("SUV", "Sedan")}, form="conditional", beta=0.5)
KINDS = ("plain", "standardised", "transformer", "levels", "progressive", "progressive_levels")


def make_bundle(kind: str, *, backbone: str = "test_resnet", size: tuple[int, int] = (48, 64)) -> Bundle:
    """One of KINDS, with random weights and statistics, so that no two outputs are alike."""
    torch.manual_seed(1)
    levels = LEVELS if kind.endswith("levels") else None
    spec = ModelSpec(
        "progressive" if kind.startswith("progressive") else "plain",
        "test_vit" if kind == "transformer" else backbone,
        len(CARS),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        standardise=kind == "standardised",
        temperature=1.7,
        hierarchy=levels,
    )
    network = build_network(spec, CARS)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    state = (network.model if isinstance(network, Backbone) else network).state_dict()
    return Bundle(spec, CARS, Preprocess(height=size[0], width=size[1], crop=0.8), state, "# A card\n", "car")


@pytest.fixture(scope="session", params=KINDS)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Each of them."""
    return make_bundle(request.param)


@pytest.fixture(scope="session")
def plain() -> Bundle:
    """The first of them."""
    return make_bundle("plain")


@pytest.fixture(scope="session")
def standardised() -> Bundle:
    """One that brings every image to statistics of its own."""
    return make_bundle("standardised")
