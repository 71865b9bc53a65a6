"""Image -> features -> named outputs."""

from __future__ import annotations

from vmmr.models.assemble import ProgressiveNetwork
from vmmr.models.backbone import Backbone, load_weights

__all__ = ["Backbone", "ProgressiveNetwork", "load_weights"]
