"""Features -> named outputs."""

from __future__ import annotations

from vmmr.models.heads.denoise_recognise import Decoder, HeadForm, RecognitionHead
from vmmr.models.heads.hierarchy import HierarchyHead

__all__ = ["Decoder", "HeadForm", "HierarchyHead", "RecognitionHead"]
