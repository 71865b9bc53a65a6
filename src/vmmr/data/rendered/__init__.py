"""Vehicles drawn on the fly: the embedded default data and the test bed. Seeded, no download, every truth known."""

from __future__ import annotations

from vmmr.data.rendered.dataset import draw, write_dataset
from vmmr.data.rendered.light import LIGHTS
from vmmr.data.rendered.renderer import Renderer, Sample
from vmmr.data.rendered.scene import Pose, Scene, Trajectory, View, portrait
from vmmr.data.rendered.truth import MANIFEST_COLUMNS, VIEWPOINTS, Part, Truth, viewpoint_of
from vmmr.data.rendered.world import Camera, Vehicle, World

__all__ = [
    "LIGHTS",
    "MANIFEST_COLUMNS",
    "VIEWPOINTS",
    "Camera",
    "Part",
    "Pose",
    "Renderer",
    "Sample",
    "Scene",
    "Trajectory",
    "Truth",
    "Vehicle",
    "View",
    "World",
    "draw",
    "portrait",
    "viewpoint_of",
    "write_dataset",
]
