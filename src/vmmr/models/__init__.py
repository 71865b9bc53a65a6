"""Image -> features -> named outputs."""

from __future__ import annotations

from vmmr.models.assemble import ProgressiveNetwork
from vmmr.models.backbone import Backbone, load_weights
from vmmr.models.hierarchic import HierarchicNetwork, HierarchicProgressiveNetwork

__all__ = ["Backbone", "HierarchicNetwork", "HierarchicProgressiveNetwork", "ProgressiveNetwork", "load_weights"]
